#!/usr/bin/perl
# A program of a guest that the benches drive: it holds and changes memory, and forks its VM. Commands
# come as lines on standard input, each is answered by one line. It speaks to sf-guestd itself, so that
# nothing has to be started between a fork and the first request of the program in a clone. Frames:
# packages/sdk/src/api/port.ts; requests: packages/sdk/src/api/guest.ts.
#
#   hold MIB     takes that much memory, all of it filled     → ok
#   change MIB   writes other bytes into its first MIB        → ok
#   fill MIB     fills fresh memory by one memset             → ok BYTES_PER_SECOND
#   file MIB     fills a file in memory                       → ok BYTES_PER_SECOND
#   info         asks who it is, timed                        → ok MILLISECONDS
#   fork N       forks; clones ask `info` at once, then sleep → ok TICKET
#   spread HOSTS MIB   forks, a clone on each of HOSTS (A,B,…), which asks `info`, reads its first
#                MIB and exits with `MS MS SUM`, from the call until it ran and had read → ok TICKET
#
# What goes wrong is answered by `error REASON`.

use v5.36;
use Socket qw(AF_UNIX SOCK_STREAM pack_sockaddr_un);

use constant {
    SYS_CLOCK_GETTIME => 228, CLOCK_REALTIME => 0, CLOCK_MONOTONIC => 1,
    REQUEST => 0x10, RESPONSE => 0x11, HEADER => 'V C C v V', HEADER_BYTES => 12,
    MIB => 1 << 20, PAGE_BYTES => 4096,
};

my ($held, $socket, $last_id) = ('', undef, 0);
my %commands = (
    hold => \&hold, change => \&change, fill => \&fill, file => \&file,
    info => \&info, fork => \&fork_vm, spread => \&spread,
);

$| = 1;
socket $socket, AF_UNIX, SOCK_STREAM, 0 or die "socket: $!\n";
connect $socket, pack_sockaddr_un($ENV{SNOWFORK_GUEST_SOCKET}) or die "sf-guestd: $!\n";
# All code of a request has run once before the first fork, as in any program that lives for a while.
info();
say 'ready';
while (defined(my $line = <STDIN>)) {
    my ($name, @given) = split ' ', $line;
    my @answer = eval { ('ok', $commands{$name}->(@given ? @given : 0)) };
    say join ' ', @answer ? @answer : ('error', $@ =~ s/\s+/ /gr);
}

sub hold ($mib) {
    # Of noise, so that no page can be packed. By the piece: one expression as large as that would
    # need the memory twice.
    open my $source, '<:raw', '/dev/urandom' or die "/dev/urandom: $!\n";
    read($source, my $noise, MIB) == MIB or die "/dev/urandom: $!\n";
    $held = '';
    $held .= $noise for 1 .. $mib;
    change($mib);
    return ();
}

# Each page becomes different from all others, and from what it was.
sub change ($mib) {
    state $round = 0;
    $round++;
    my $pages = $mib * MIB / PAGE_BYTES;
    for my $page (0 .. $pages - 1) {
        substr $held, $page * PAGE_BYTES, 8, pack 'V2', $round, $page;
    }
    return ();
}

# One call of memset: nothing else in a guest without a compiler touches pages as fast.
sub fill ($mib) {
    my $started = now_s();
    my $filled = "\1" x ($mib * MIB);
    my $seconds = now_s() - $started;
    return sprintf '%.0f', length($filled) / $seconds;
}

sub file ($mib) {
    my $path = '/dev/shm/filled';
    my $bytes = "\1" x MIB;
    open my $file, '>', $path or die "$path: $!\n";
    my $started = now_s();
    for (1 .. $mib) { syswrite($file, $bytes) // die "$path: $!\n" }
    my $seconds = now_s() - $started;
    unlink $path;
    return sprintf '%.0f', $mib * MIB / $seconds;
}

sub info ($=) {
    my $started = now_s();
    ask('info', "\x80");
    return sprintf '%.3f', 1000 * (now_s() - $started);
}

sub fork_vm ($clones) {
    my ($id, $ticket) = asked_fork("\x81" . encode_text('clones') . pack 'C n', 0xcd, $clones);
    sleep while $id ne "\0";
    return $ticket;
}

# The wall clock is set in a clone before its programs go on, so both ends of a time can be told.
sub spread ($hosts, $mib) {
    my @hosts = split /,/, $hosts;
    my $called_s = now_s(CLOCK_REALTIME);
    my ($id, $ticket) = asked_fork("\x82" . encode_text('clones') . chr(@hosts)
        . encode_text('hosts') . chr(0x90 | @hosts) . join '', map { encode_text($_) } @hosts);
    return $ticket if $id eq "\0";
    my $ran_s = now_s(CLOCK_REALTIME);
    my $sum = 0;
    for my $page (0 .. $mib * MIB / PAGE_BYTES - 1) {
        $sum += unpack 'V', substr $held, $page * PAGE_BYTES + 4, 4;
    }
    my $value = sprintf '%.1f %.1f %.0f',
        map({ 1000 * ($_ - $called_s) } $ran_s, now_s(CLOCK_REALTIME)), $sum;
    # Bytes with a value in MessagePack again. There is no answer: the VM ends.
    my $packed = chr(0xd9) . chr(length $value) . $value;
    ask('exit', "\x81" . encode_text('value') . chr(0xc4) . chr(length $packed) . $packed);
}

# In a clone the id is not 0.
sub asked_fork ($params) {
    my $answer = ask('fork', $params);
    ask('info', "\x80");
    # `{ id, result: { id: K, ticket: { id: TEXT, … } } }` as MessagePack, in the agent's order.
    my ($id, $ticket) =
        $answer =~ /\xa6result.{1,3}\xa2id(.{1,3})\xa6ticket.{1,3}\xa2id[\xa0-\xbf]([a-z]+\d+(-[a-z]+)?)/s
        or die "an answer that is not understood\n";
    return ($id, $ticket);
}

# The minimal guest has perl-base only, which lacks Time::HiRes.
sub now_s ($clock = CLOCK_MONOTONIC) {
    my $timespec = pack 'q2', 0, 0;
    syscall SYS_CLOCK_GETTIME, $clock, $timespec;
    my ($seconds, $nanoseconds) = unpack 'q2', $timespec;
    return $seconds + $nanoseconds / 1e9;
}

# The answer's MessagePack as it came.
sub ask ($method, $params) {
    my $id = ++$last_id % 0x7f;
    my $request = "\x83"
        . encode_text('id') . chr($id)
        . encode_text('method') . encode_text($method)
        . encode_text('params') . $params;
    syswrite $socket, pack(HEADER, length $request, REQUEST, 0, 0, 0) . $request;
    my ($type, $answer) = (0, '');
    while ($type != RESPONSE) {
        # What comes first may be the news that the VM was forked.
        (my $length, $type) = unpack HEADER, read_exactly(HEADER_BYTES);
        $answer = read_exactly($length);
    }
    die "$answer\n" if index($answer, "\xa5error") >= 0;
    return $answer;
}

sub encode_text ($text) { return chr(0xa0 | length $text) . $text }

sub read_exactly ($count) {
    my $bytes = '';
    while (length $bytes < $count) {
        my $got = sysread $socket, $bytes, $count - length $bytes, length $bytes;
        die "sf-guestd closed the connection\n" unless $got;
    }
    return $bytes;
}
