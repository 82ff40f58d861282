#!/usr/bin/perl
# A server with its data in memory, and its clients: requests for random records, one after another, as
# fast as they are answered. Goes on in every clone. Driven by `bench/remote/server.ts`.
#
#   server.pl MIB LOG    makes its records, 64 fields in each, says `ready`, and begins with LOG:
#                        a line `WALL_MS REQUESTS` for each tenth of a second, by the wall clock,
#                        which is right in clones too
#
# Each field says where it is, so a wrong page ends the server.

use v5.36;

use constant {
    SYS_CLOCK_GETTIME => 228, CLOCK_REALTIME => 0,
    MIB => 1 << 20, RECORD_BYTES => 4096, FIELDS => 64, SLICE_MS => 100, BATCH => 16,
};

my ($mib, $path) = @ARGV;
my $records = $mib * MIB / RECORD_BYTES;
my @tables;
# A table of 1 MiB at a time: one string as large as that would need the memory twice.
for my $table (0 .. $mib - 1) {
    my $first = $table * (MIB / RECORD_BYTES);
    my $records = '';
    for my $record ($first .. $first + MIB / RECORD_BYTES - 1) {
        $records .= pack '(V2 x56)*', map { ($record, $_) } 0 .. FIELDS - 1;
    }
    push @tables, $records;
}
open my $log, '>>', $path or die "$path: $!\n";
$| = 1;
say 'ready';

my ($seed, $count, $slice) = (1, 0, 0);
while (1) {
    for (1 .. BATCH) {
        $seed = ($seed * 1103515245 + 12345) & 0x7fffffff;
        my $record = ($seed >> 8) % $records;
        my $field = ($seed >> 4) % FIELDS;
        my $offset = $record % (MIB / RECORD_BYTES) * RECORD_BYTES + $field * (RECORD_BYTES / FIELDS);
        my @found = unpack 'V2', substr $tables[$record / (MIB / RECORD_BYTES)], $offset, 8;
        die "$record, $field: @found\n" if $found[0] != $record || $found[1] != $field;
    }
    $count += BATCH;
    my $now_ms = now_ms();
    next if int($now_ms / SLICE_MS) == $slice;
    syswrite $log, sprintf "%.0f %d\n", $now_ms, $count;
    ($slice, $count) = (int($now_ms / SLICE_MS), 0);
}

# The minimal guest has perl-base only, which lacks Time::HiRes.
sub now_ms () {
    my $timespec = pack 'q2', 0, 0;
    syscall SYS_CLOCK_GETTIME, CLOCK_REALTIME, $timespec;
    my ($seconds, $nanoseconds) = unpack 'q2', $timespec;
    return 1000 * $seconds + $nanoseconds / 1e6;
}
