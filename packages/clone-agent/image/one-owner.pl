# Runs a command of an image build in a user namespace that has one user, where no file can be given
# to anybody else: changes of owner are answered with success and not made, by a seccomp filter, so
# that Debian's packages install; all of the image is then root's. Perl, as mmdebstrap brings it.
#
#   perl one-owner.pl ROOT COMMAND…    ROOT: a root file system whose /dev gets the host's devices, or ''
#
# Started in a mount namespace of its own by image/run.ts.
use strict;
use warnings;

use constant { SYS_PRCTL => 157, PR_SET_SECCOMP => 22, SECCOMP_MODE_FILTER => 2 };
use constant { AUDIT_ARCH_X86_64 => 0xc000003e, ALLOW => 0x7fff0000, SUCCEED => 0x00050000 };
use constant { LOAD_WORD => 0x20, JUMP_IF_EQUAL => 0x15, RETURN => 0x06 };
# chown, fchown, lchown, fchownat of x86-64.
my @CALLS = (92, 93, 94, 260);
# No device can be made here, but those of the host can be lent.
my @DEVICES = qw(null zero full random urandom tty);

my ($root, @command) = @ARGV;
die "usage: one-owner.pl ROOT COMMAND...\n" unless defined $root && @command;

for my $name ($root eq '' ? () : @DEVICES) {
    my $file = "$root/dev/$name";
    # A link there would lead out of the root.
    next if -l "$root/dev" || -l $file;
    mkdir "$root/dev";
    open(my $made, '>>', $file) or die "$file: $!\n";
    close $made;
    system('mount', '--bind', "/dev/$name", $file) == 0 or die "$file: not mounted\n";
}

# Architecture, call; each of the calls jumps to the last instruction.
my @filter = ([LOAD_WORD, 0, 0, 4], [JUMP_IF_EQUAL, 0, scalar(@CALLS) + 1, AUDIT_ARCH_X86_64]);
push @filter, [LOAD_WORD, 0, 0, 0];
push @filter, map { [JUMP_IF_EQUAL, @CALLS - $_, 0, $CALLS[$_]] } 0 .. $#CALLS;
push @filter, [RETURN, 0, 0, ALLOW], [RETURN, 0, 0, SUCCEED];
my $code = join '', map { pack 'SCCL', @$_ } @filter;
# struct sock_fprog: the number of instructions, their address, 8-aligned.
my $program = pack 'Sx6P', scalar(@filter), $code;
syscall(SYS_PRCTL, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, $program) == 0 or die "seccomp: $!\n";
exec { $command[0] } @command or die "$command[0]: $!\n";
