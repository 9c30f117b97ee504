package vm

import (
	"regexp"
	"strconv"
	"strings"
)

// What QEMU's emulation of several CPUs gets wrong now and then, so that the guest's kernel fails. It is no fault of what is
// tested, and another boot goes on.
const (
	// patchFault is what a kernel prints that has met its own breakpoint. It patches its code while the
	// other CPU runs it, and the emulated one executes the old bytes.
	patchFault = "Oops: int3"
	// flagsFault is what follows when the flags are garbage, mostly part of a pointer, after cmpxchg16b.
	flagsFault = "Oops: double fault"
	// noFlags are the bits that no CPU sets in its flags.
	noFlags = 0xffc08028
)

var flagsLine = regexp.MustCompile(`RSP: 0018:\w+ EFLAGS: (\w{8})`)

// emulated reports whether the emulator is to blame for a failure of the guest's kernel. console is the end of what it has
// printed.
func emulated(what, console string) bool {
	if strings.Contains(what, patchFault) {
		return true
	}
	m := flagsLine.FindStringSubmatch(console)
	if !strings.Contains(what, flagsFault) || m == nil {
		return false
	}
	flags, err := strconv.ParseUint(m[1], 16, 32)
	return err == nil && flags&noFlags != 0
}
