#!/usr/bin/perl
# A program of a guest that works when it is told to, and goes on in every clone: it takes its commands
# from a FIFO, so that a clone's copy of it can be spoken to as well. It measures itself by the guest's
# monotonic clock. Started and driven by `bench/support/worker.ts`.
#
#   worker.pl FOLDER MIB     holds twice MIB of memory; FOLDER/ask and FOLDER/answer are made here, FOLDER/ready last
#
#   cpu ROUNDS        computes, nearly without memory           → SECONDS RESULT
#   memory PASSES     reads all it holds and writes half of it; an even number leaves it as it was  → SECONDS RESULT
#   walk SEED         touches its pages in a random order       → a line for each page, PAGE
#
# RESULT depends on all that was computed and nothing else: parent and clone must get the same.

use v5.36;
use POSIX ();

use constant {
    SYS_CLOCK_GETTIME => 228, CLOCK_MONOTONIC => 1,
    MIB => 1 << 20, PAGE_BYTES => 4096,
};

my ($folder, $mib) = @ARGV;
my %commands = (cpu => \&compute, memory => \&use_memory, walk => \&walk);
my $pages = $mib * MIB / PAGE_BYTES;
# By the piece: one expression as large as that would need the memory twice.
my ($held, $mask) = ('', '');
for my $page (0 .. $pages - 1) {
    $held .= pack('V2', $page, 1) x (PAGE_BYTES / 8);
    $mask .= pack('V2', $page, 2) x (PAGE_BYTES / 8);
}

POSIX::mkfifo("$folder/$_", 0600) or die "$folder/$_: $!\n" for qw(ask answer);
# For reading and writing, so that it never comes to its end.
open my $ask, '+<', "$folder/ask" or die "ask: $!\n";
open my $ready, '>', "$folder/ready" or die "ready: $!\n";
close $ready;

while (defined(my $line = <$ask>)) {
    my ($name, $count) = split ' ', $line;
    open my $answer, '>', "$folder/answer" or die "answer: $!\n";
    $answer->autoflush(1);
    eval { $commands{$name}->($count, $answer); 1 } or say $answer "error $@" =~ s/\s+/ /gr;
    close $answer;
}

sub compute ($rounds, $answer) {
    my $started_s = now_s();
    my ($value, $sum) = (1, 0);
    for (1 .. $rounds) {
        $value = ($value * 1103515245 + 12345) & 0x7fffffff;
        $sum = ($sum + ($value >> 7)) & 0xffffffff if $value & 64;
    }
    printf $answer "%.6f %d\n", now_s() - $started_s, $sum;
}

# In place: no byte of it moves, and nothing else is touched.
sub use_memory ($passes, $answer) {
    my $started_s = now_s();
    $held ^.= $mask for 1 .. $passes;
    my $seconds = now_s() - $started_s;
    printf $answer "%.6f %d\n", $seconds, unpack '%32V*', substr $held, -(MIB);
}

sub walk ($seed, $answer) {
    my @order = 0 .. $pages - 1;
    for my $last (reverse 1 .. $#order) {
        $seed = ($seed * 1103515245 + 12345) & 0x7fffffff;
        my $other = ($seed >> 8) % ($last + 1);
        @order[$last, $other] = @order[$other, $last];
    }
    for my $page (@order) {
        my ($found) = unpack 'V', substr $held, $page * PAGE_BYTES, 4;
        die "page $page holds $found\n" if $found != $page;
        say $answer $page;
    }
}

# The minimal guest has perl-base only, which lacks Time::HiRes.
sub now_s () {
    my $timespec = pack 'q2', 0, 0;
    syscall SYS_CLOCK_GETTIME, CLOCK_MONOTONIC, $timespec;
    my ($seconds, $nanoseconds) = unpack 'q2', $timespec;
    return $seconds + $nanoseconds / 1e9;
}
