package vm

import "testing"

func TestEmulated(t *testing.T) {
	const oops = "[  252.296390] Oops: double fault: 0000 [#1] SMP NOPTI"
	regs := func(flags string) string {
		return "[  252.3] Code: f8 48 8b\n[  252.3] RSP: 0018:ffffc9c5c21a7860 EFLAGS: " + flags + "\n[  252.3] RAX: 0"
	}
	for _, tt := range []struct {
		what, console string
		want          bool
	}{
		{"[  10.0] Oops: int3: 0000 [#1] SMP NOPTI", regs("00000246"), true},
		{oops, regs("0753c742"), true},
		{oops, regs("00010246"), false}, // a stack that has overflown, say
		{oops, "", false},
		{"[  10.0] Oops: general protection fault", regs("0753c742"), false},
		{"[  10.0] Oops: 0000 [#1] SMP NOPTI", "", false},
	} {
		if got := emulated(tt.what, tt.console); got != tt.want {
			t.Errorf("%s, %s: %v", tt.what, tt.console, got)
		}
	}
}
