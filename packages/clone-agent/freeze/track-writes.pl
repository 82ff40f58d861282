# Makes a process ask its kernel to track its writes: in its name it opens a userfaultfd with asynchronous
# write protection for a range of its memory. Only the process itself can, as a userfaultfd is bound to the memory of
# whoever opens it; so one of its threads is stopped for a moment (ptrace) and made to call. It changes
# nothing else there: the thread goes on as if it had been interrupted and gone back to sleep.
#
#   perl -w track-writes.pl PID START BYTES    in decimal; ends with 0, or says what is missing
#
# A process of its own, run by src/freeze/write-tracker.ts: an agent that is killed does not leave a thread half way,
# and nobody waits for a thread that does not stop. Perl, as it makes system calls and starts
# soon, without `use warnings` by a third sooner. x86-64.
use strict;

use constant { SYS_WAIT4 => 61, SYS_PTRACE => 101, WALL => 0x40000000 };
use constant { SETREGS => 13, GETREGS => 12, POKEDATA => 5, DETACH => 17, NEXT_CALL => 24 };
use constant { SEIZE => 0x4206, INTERRUPT => 0x4207, GETSIGMASK => 0x420a, SETSIGMASK => 0x420b };
use constant { TRACE_CALLS => 1, SIGMASK_BYTES => 8 };
# Wait status, without its low byte: stopped by INTERRUPT; at the beginning or the end of a call.
use constant { STOPPED => 0x8005, AT_CALL => 0x85 };
# struct user_regs_struct, as u64: their indices.
use constant { REGISTERS => 27, RAX => 10, RDX => 12, RSI => 13, RDI => 14 };
use constant { ORIG_RAX => 15, RIP => 16, RSP => 19 };

use constant { SYS_CLOSE => 3, SYS_IOCTL => 16, SYS_USERFAULTFD => 323 };
use constant { O_CLOEXEC => 02000000, UFFD_USER_MODE_ONLY => 1 };
use constant { UFFDIO_API => 0xc018aa3f, UFFD_API => 0xaa, UFFD_FEATURE_WP_ASYNC => 1 << 15 };
use constant { UFFDIO_REGISTER => 0xc020aa00, UFFDIO_REGISTER_MODE_WP => 2 };

# Below what the thread's own code may use without having moved its stack pointer.
use constant { SCRATCH_BELOW_STACK_BYTES => 1024, STOP_TIMEOUT_S => 2 };

my ($pid, $start, $bytes) = map { $_ + 0 } @ARGV;
die "usage: track-writes.pl PID START BYTES\n" unless $pid && $start && $bytes;

my $call_address = find_call();
my $thread = stoppable_thread();
attach();
my $error = track();
ptrace(DETACH, 0, 0);
die $error if defined $error;

# Any syscall instruction will do; the kernel's own code in every process has one.
sub find_call {
    open(my $maps, '<', "/proc/$pid/maps") or die "maps: $!\n";
    local $^W = 0; # of numbers beyond 32 bits
    my ($from, $to) = map { /^(\w+)-(\w+) r-xp .*\[vdso\]$/ ? (hex $1, hex $2) : () } <$maps>;
    defined $from or die "it has no vdso\n";
    open(my $memory, '<:raw', "/proc/$pid/mem") or die "mem: $!\n";
    seek($memory, $from, 0) && read($memory, my $code, $to - $from) or die "vdso: $!\n";
    my $at = index($code, "\x0f\x05");
    $at >= 0 or die "its vdso makes no call\n";
    return $from + $at;
}

# One that waits for a page (D) can't be stopped until that has come.
sub stoppable_thread {
    opendir(my $threads, "/proc/$pid/task") or die "task: $!\n";
    for my $thread (grep { /^\d+$/ } readdir $threads) {
        open(my $stat, '<', "/proc/$pid/task/$thread/stat") or next;
        return $thread + 0 if <$stat> =~ /\) [SR] [^)]*$/;
    }
    die "none of its threads can be stopped now\n";
}

# If the thread does not stop in time this process ends, and the kernel lets go of it.
sub attach {
    ptrace(SEIZE, 0, TRACE_CALLS);
    alarm STOP_TIMEOUT_S;
    ptrace(INTERRUPT, 0, 0);
    my $status = wait_for_stop();
    alarm 0;
    $status == STOPPED or die sprintf "the thread was stopped by something else (%x)\n", $status;
}

# Returns what went wrong, if something did; the thread is as it was found. What it was waiting in when it was stopped, the
# kernel begins again when it lets go of it, as its registers say that this was interrupted.
sub track {
    my ($packed, $mask) = ("\0" x (8 * REGISTERS), "\0" x SIGMASK_BYTES);
    ptrace(GETREGS, 0, $packed);
    ptrace(GETSIGMASK, SIGMASK_BYTES, $mask);
    ptrace(SETSIGMASK, SIGMASK_BYTES, "\xff" x SIGMASK_BYTES);
    my $error = eval { register(unpack 'q*', $packed); 1 } ? undef : $@;
    ptrace(SETREGS, 0, $packed);
    ptrace(SETSIGMASK, SIGMASK_BYTES, $mask);
    return $error;
}

sub register {
    my @registers = @_;
    my $scratch = ($registers[RSP] - SCRATCH_BELOW_STACK_BYTES) & ~15;
    my $fd = call(\@registers, SYS_USERFAULTFD, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    $fd >= 0 or die 'userfaultfd: ', words($fd);
    my $ioctl = sub {
        my ($request, @argument) = @_;
        ptrace(POKEDATA, $scratch + 8 * $_, $argument[$_]) for 0 .. $#argument;
        return call(\@registers, SYS_IOCTL, $fd, $request, $scratch);
    };
    my $result = $ioctl->(UFFDIO_API, UFFD_API, UFFD_FEATURE_WP_ASYNC, 0);
    my $doing = 'UFFD_FEATURE_WP_ASYNC';
    if ($result == 0) {
        $result = $ioctl->(UFFDIO_REGISTER, $start, $bytes, UFFDIO_REGISTER_MODE_WP, 0);
        $doing = 'UFFDIO_REGISTER';
    }
    return if $result == 0;
    call(\@registers, SYS_CLOSE, $fd);
    die "$doing: ", words($result);
}

# The thread makes one call; no signal comes between.
sub call {
    my ($registers, $number, @arguments) = @_;
    my @set = @$registers;
    # Without a call that was interrupted nothing is begun again yet.
    @set[RAX, ORIG_RAX, RIP] = ($number, -1, $call_address);
    @set[(RDI, RSI, RDX)[0 .. $#arguments]] = @arguments;
    ptrace(SETREGS, 0, pack 'q*', @set);
    for my $stop (qw(beginning end)) {
        ptrace(NEXT_CALL, 0, 0);
        my $status = wait_for_stop();
        $status == AT_CALL or die sprintf "no %s of a call, but %x\n", $stop, $status;
    }
    my $packed = "\0" x (8 * REGISTERS);
    ptrace(GETREGS, 0, $packed);
    return (unpack 'q*', $packed)[RAX];
}

# The kernel may write into the third argument: it is not to be copied.
sub ptrace {
    my ($request, $address) = @_;
    syscall(SYS_PTRACE, $request, $thread, $address, $_[2]) >= 0 or die "ptrace $request: $!\n";
}

sub wait_for_stop {
    my $status = pack 'i', 0;
    syscall(SYS_WAIT4, $thread, $status, WALL, 0) > 0 or die "wait4: $!\n";
    my $stopped = unpack 'i', $status;
    ($stopped & 0xff) == 0x7f or die "it has ended\n";
    return $stopped >> 8;
}

sub words {
    local $! = -shift;
    return "$!\n";
}
