package attrs

import "testing"

func TestIOPrio(t *testing.T) {
	for _, c := range []struct {
		text string
		v    uint16
		back string // what is read off the value, if it is not text
	}{
		{"hint=bypass", 2<<13 | 770<<3 | 4, ""},
		{"hint=default", 2<<13 | 768<<3 | 4, ""},
		{"hint=prefetch,prio=rt/0", 1<<13 | 775<<3, ""},
		{"prio=idle/7", 3<<13 | 7, ""},
		{"prio=be/3", 2<<13 | 3, ""},
		{"hint=once,prio=be/4", 2<<13 | 771<<3 | 4, "hint=once"},
		{"", 0, ""},
		{"tenant=7,timing", 0, "-"},
	} {
		s := parsed(t, c.text)
		if got := s.IOPrio(); got != c.v {
			t.Errorf("%s: %#x, want %#x", c.text, got, c.v)
		}
		want := c.text
		if c.back == "-" {
			want = ""
		} else if c.back != "" {
			want = c.back
		}
		var back Set
		back.AddIOPrio(c.v)
		if back.String() != want {
			t.Errorf("%#x: %q, want %q", c.v, back.String(), want)
		}
		if back.Has(IDHint) && back.Source(IDHint) != SourceIOPrio {
			t.Errorf("%s: source %v", c.text, back.Source(IDHint))
		}
	}
}

// TestIOPrioAll reads every value: only our hints mean anything, and they come back the same.
func TestIOPrioAll(t *testing.T) {
	hints := map[Hint]int{}
	for v := range 1 << 16 {
		var s Set
		s.AddIOPrio(uint16(v))
		hint, class := v>>3&0x3ff, v>>13
		ours := hint >= 768 && hint <= 775
		if s.Has(IDHint) != ours {
			t.Fatalf("%#x: hint %t", v, s.Has(IDHint))
		}
		if ours {
			hints[s.Hint()]++
		}
		if s.Has(IDPriority) != (class >= 1 && class <= 3 && !(class == 2 && v&7 == 4)) {
			t.Fatalf("%#x: %v", v, &s)
		}
		// Only a class that is there carries a hint back.
		if ours && class >= 1 && class <= 3 && s.IOPrio() != uint16(v) {
			t.Fatalf("%#x comes back as %#x", v, s.IOPrio())
		}
		if s.bad != 0 {
			t.Fatalf("%#x: %v", v, &s)
		}
	}
	if len(hints) != 8 || HintIOPrio <= 7 || HintIOPrio+int(HintPrefetch) > 1023 {
		t.Errorf("hints %v from %d on", hints, HintIOPrio)
	}
}

func TestKernelSources(t *testing.T) {
	for v := range 256 {
		var s Set
		s.AddWriteHint(uint8(v))
		if v < 1 || v > 5 {
			if !s.Empty() {
				t.Errorf("write hint %d: %v", v, &s)
			}
			continue
		}
		if s.Lifetime() != Lifetime(v) || s.Source(IDLifetime) != SourceKernel {
			t.Errorf("write hint %d: %v from %v", v, &s, s.Source(IDLifetime))
		}
	}
	s := *parsed(t, "tenant=5,lifetime=long,hint=pin")
	s.AddCgroup(9)
	s.AddWriteHint(2)
	s.AddIOPrio(770 << 3)
	if s.String() != "hint=pin,lifetime=long,tenant=5" {
		t.Errorf("the kernel beat the issuer: %v", &s)
	}
	rule := *parsed(t, "tenant=5,lifetime=long,hint=pin")
	rule.Mark(SourceRule)
	rule.AddCgroup(9)
	rule.AddWriteHint(2)
	rule.AddIOPrio(770 << 3)
	if rule.String() != "hint=bypass,lifetime=short,tenant=cgroup:9" {
		t.Errorf("a rule beat the request: %v", &rule)
	}
}
