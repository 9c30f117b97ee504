package policy

import (
	"testing"
	"time"
)

func TestWritebackRate(t *testing.T) {
	const delay = 30 * time.Second
	for _, c := range []struct {
		name string
		v    WritebackView
		want int64
	}{
		{"nothing dirty", WritebackView{Target: 100, Max: 700, Age: time.Hour, Delay: delay, Idle: time.Hour}, 0},
		{"nothing dirty, draining", WritebackView{Target: 100, Max: 700, Drain: true}, 0},
		{"draining", WritebackView{Dirty: 1, Target: 100, Max: 700, Delay: delay, Drain: true}, Full},
		{"young, below the target", WritebackView{Dirty: 99, Target: 100, Max: 700, Age: delay, Delay: delay, Idle: time.Hour}, 0},
		{"at the target", WritebackView{Dirty: 100, Target: 100, Max: 700, Age: time.Second, Delay: delay}, 0},
		{"old, idle", WritebackView{Dirty: 1, Target: 100, Max: 700, Age: delay + 1, Delay: delay, Idle: time.Second}, Full},
		{"old, busy", WritebackView{Dirty: 1, Target: 100, Max: 700, Age: delay + 1, Delay: delay}, 0},
		{"old for long, busy", WritebackView{Dirty: 1, Target: 100, Max: 700, Age: 4 * delay, Delay: delay}, 0},
		{"very old, busy", WritebackView{Dirty: 1, Target: 100, Max: 700, Age: 4*delay + 1, Delay: delay}, minRate},
		{"a little above, busy", WritebackView{Dirty: 1001, Target: 1000, Max: 7000, Delay: delay}, minRate},
		{"above, busy", WritebackView{Dirty: 110_000, Target: 10_000, Max: 700_000, Delay: delay}, 2500},
		{"above, idle", WritebackView{Dirty: 1001, Target: 1000, Max: 7000, Delay: delay, Idle: time.Second}, Full},
		{"half-way to the limit, busy", WritebackView{Dirty: 4000, Target: 1000, Max: 7000, Delay: delay}, minRate},
		{"above half-way, busy", WritebackView{Dirty: 4001, Target: 1000, Max: 7000, Delay: delay}, Full},
		{"at the limit", WritebackView{Dirty: 7000, Target: 1000, Max: 7000, Delay: delay}, Full},
		{"target is the limit", WritebackView{Dirty: 501, Target: 500, Max: 500, Delay: delay}, Full},
		{"target 0, idle", WritebackView{Dirty: 1, Max: 7000, Delay: delay, Idle: time.Second}, Full},
		{"target 0, busy", WritebackView{Dirty: 1, Max: 7000, Delay: delay}, minRate},
		{"no delay, idle", WritebackView{Dirty: 1, Target: 100, Max: 700, Age: 1, Idle: time.Second}, Full},
		{"beside rt", WritebackView{Dirty: 7000, Target: 1000, Max: 7000, Delay: delay, RT: true}, minRate},
		{"below the target, beside rt", WritebackView{Dirty: 1, Target: 100, Max: 700, RT: true, Delay: delay}, 0},
		{"draining beside rt", WritebackView{Dirty: 7000, Target: 100, Max: 700, Drain: true, RT: true}, drainRT},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := WritebackRate(c.v); got != c.want {
				t.Errorf("WritebackRate(%+v) = %d, want %d", c.v, got, c.want)
			}
		})
	}
}

// TestWritebackRateGrows shows that more dirty data never makes the writeback slower: a controller
// that did would let the cache fill up.
func TestWritebackRateGrows(t *testing.T) {
	for _, idle := range []time.Duration{0, time.Minute} {
		for _, age := range []time.Duration{0, time.Minute, time.Hour} {
			last := int64(0)
			for dirty := int64(0); dirty <= 700_000; dirty += 500 {
				rate := WritebackRate(WritebackView{
					Dirty: dirty, Target: 100_000, Max: 700_000, Age: age, Delay: 30 * time.Second, Idle: idle,
				})
				if rate < last {
					t.Fatalf("idle %v, age %v: at %d dirty blocks the rate falls from %d to %d",
						idle, age, dirty, last, rate)
				}
				last = rate
			}
			if last != Full {
				t.Errorf("idle %v, age %v: rate %d at the limit, want all that can be", idle, age, last)
			}
		}
	}
}
