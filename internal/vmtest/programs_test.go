//go:build vm

package vmtest

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// attrProgram is a program that knows nothing of ubcache and says something by means of the kernel.
type attrProgram struct {
	name, says string
	// run does 1 MiB of direct I/O from a place of the device on.
	run func(t *testing.T, dev string, offMiB int)
	// effect looks at what that has changed.
	effect func(t *testing.T, before, after *attrState)
}

// attrState is what can be seen of a cache before and after.
type attrState struct {
	cached int64
	stats  AttributeStats
}

func stateOf(t *testing.T, c *Cache) *attrState {
	return &attrState{c.Device(t, "data").CachedBytes, c.Attributes(t)}
}

// class is how many requests of a priority class there were, of all levels.
func (s *attrState) class(name string) (n int64) {
	for p, g := range s.stats.ByPriority {
		if strings.HasPrefix(p, name+"/") {
			n += g.Requests
		}
	}
	return n
}

const programMiB = 1

func attrFio(t *testing.T, dev string, offMiB int, options ...string) {
	t.Helper()
	Fio(t, dev, append([]string{
		"bs=64k", "iodepth=4", fmt.Sprintf("offset=%dm", offMiB),
		fmt.Sprintf("size=%dm", programMiB),
	}, options...)...)
}

func attrDD(dev string, offMiB int) []string {
	return []string{
		"dd", "if=" + dev, "of=/dev/null", "bs=64k", "iflag=direct", "status=none",
		fmt.Sprintf("count=%d", programMiB<<4), fmt.Sprintf("skip=%d", offMiB<<4),
	}
}

func notCachedWith(hint string) func(*testing.T, *attrState, *attrState) {
	return func(t *testing.T, before, after *attrState) {
		if after.stats.ByHint[hint].Bytes-before.stats.ByHint[hint].Bytes != programMiB<<20 {
			t.Errorf("hint %s: %+v, before %+v", hint, after.stats.ByHint[hint], before.stats.ByHint[hint])
		}
		if after.cached != before.cached {
			t.Errorf("%d bytes cached", after.cached-before.cached)
		}
	}
}

func servedWith(class string) func(*testing.T, *attrState, *attrState) {
	return func(t *testing.T, before, after *attrState) {
		if n := after.class(class) - before.class(class); n < 16 {
			t.Errorf("%d requests of class %s, want 16 or more", n, class)
		}
		if n := after.cached - before.cached; n < programMiB<<20 {
			t.Errorf("%d bytes cached by reads without a hint", n)
		}
	}
}

var attrPrograms = []attrProgram{
	{
		name: "fio io_uring, cmdprio_hint", says: "hint=bypass",
		run: func(t *testing.T, dev string, off int) {
			attrFio(t, dev, off, "rw=read", "ioengine=io_uring", "cmdprio_percentage=100",
				"cmdprio_class=2", "cmdprio=4", "cmdprio_hint=770")
		},
		effect: notCachedWith("bypass"),
	},
	{
		name: "fio libaio, cmdprio", says: "prio=idle",
		run: func(t *testing.T, dev string, off int) {
			attrFio(t, dev, off, "rw=read", "ioengine=libaio", "cmdprio_percentage=100",
				"cmdprio_class=3", "cmdprio=0")
		},
		effect: servedWith("idle"),
	},
	{
		name: "fio io_uring, cmdprio", says: "prio=rt/3",
		run: func(t *testing.T, dev string, off int) {
			attrFio(t, dev, off, "rw=read", "ioengine=io_uring", "cmdprio_percentage=100",
				"cmdprio_class=1", "cmdprio=3")
		},
		effect: servedWith("rt"),
	},
	{
		name: "ionice -c3 dd", says: "prio=idle",
		run: func(t *testing.T, dev string, off int) {
			Run(t, "ionice", append([]string{"-c3"}, attrDD(dev, off)...)...)
		},
		effect: servedWith("idle"),
	},
	{
		name: "ubcache run dd", says: "hint=once",
		run: func(t *testing.T, dev string, off int) {
			Ubcache(t, append([]string{"run", "--hint", "once", "--"}, attrDD(dev, off)...)...)
		},
		effect: notCachedWith("once"),
	},
	{
		name: "fio, write_hint", says: "lifetime=short",
		run: func(t *testing.T, dev string, off int) {
			attrFio(t, dev, off, "rw=write", "ioengine=io_uring", "write_hint=short")
		},
		effect: func(t *testing.T, before, after *attrState) {
			a, b := after.stats.ByAttribute["lifetime"], before.stats.ByAttribute["lifetime"]
			if a.Handled-b.Handled < 16 || a.Sources["kernel"]-b.Sources["kernel"] < 16 {
				t.Errorf("lifetime: %+v, before %+v", a, b)
			}
		},
	},
}

// TestAttributePrograms is the table program × what it says, on all kernels: each shown in effect.
func TestAttributePrograms(t *testing.T) {
	Limit(t, 3*time.Minute)
	c := NewCache(t, Slice(t, "ssd", 0, 128))
	dev := c.Attach(t, Slice(t, "slow", 0, 128), "data", "--mode=writeback", "--sequential-cutoff=0")
	kernelSource(t, c)
	// Requests are counted, so none may become a part of another.
	if err := os.WriteFile(QueueFile(t, dev, "nomerges"), []byte("2"), 0); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "program\tsays\t")
	for i, p := range attrPrograms {
		cell := "FAILED"
		if t.Run(p.name, func(t *testing.T) {
			before := stateOf(t, c)
			p.run(t, dev, 8*(i+1))
			p.effect(t, before, stateOf(t, c))
		}) {
			cell = "in effect"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", p.name, p.says, cell)
	}
	_ = w.Flush()
	fmt.Printf("program × attribute, Linux %s\n%s", os.Getenv("UBVM_KERNEL"), text.String())
}
