package daemon

import "testing"

// TestWaitUnused: who is named as a user may be gone before the next question; others do not go away by themselves.
func TestWaitUnused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		leaves int // the client is gone from that question on, 0: there is none
		mount  string
		want   string
	}{
		{"nobody", 0, "", ""},
		{"a mount", 0, "mounted", "mounted"},
		{"a client that leaves between the questions", 2, "", ""},
		{"a client that leaves between two others", 3, "", ""},
		{"a client that leaves later", 6, "", ""},
		{"a client that leaves before a mount is seen", 2, "mounted", "mounted"},
		{"both", 6, "mounted", "mounted"},
	} {
		asked := 0
		there := func() bool {
			asked++
			return asked < tt.leaves
		}
		got := waitUnused(func() string {
			if there() {
				return "client"
			}
			return tt.mount
		}, there)
		if got != tt.want {
			t.Errorf("%s: used by %q, want %q", tt.name, got, tt.want)
		}
	}
}
