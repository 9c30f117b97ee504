package policy

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// push queues a job whose owner is its name.
func push(s *Scheduler, name string, c Class, level uint8, now int64) {
	s.Push(&Job{Class: c, Level: level, Owner: name}, now)
}

// drain takes what may go into service now, and ends it.
func drain(s *Scheduler, now int64, v Contention) (names []string) {
	for j := s.Next(now, v); j != nil; j = s.Next(now, v) {
		names = append(names, j.Owner.(string))
		s.End(j.Class)
	}
	return names
}

func TestSchedulerOrder(t *testing.T) {
	var s Scheduler
	push(&s, "idle0", Idle, 0, 1)
	push(&s, "be7", BE, 7, 2)
	push(&s, "be4a", BE, 4, 3)
	push(&s, "rt5", RT, 5, 4)
	push(&s, "be4b", BE, 4, 5)
	push(&s, "rt1", RT, 1, 6)
	want := []string{"rt1", "rt5", "be4a", "be4b", "be7", "idle0"}
	if got := drain(&s, 10, Contention{RT: true, BE: true}); !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
	if s.Queued() != 0 {
		t.Errorf("%d are still queued", s.Queued())
	}
}

func TestSchedulerLimits(t *testing.T) {
	for _, c := range []struct {
		name         string
		class        Class
		v            Contention
		be, idle, rt int // in service already
		want         int // that may be in service in all
	}{
		{"rt alone", RT, Contention{RT: true}, 0, 0, 0, maxRT},
		{"rt beside a flood", RT, Contention{RT: true, BE: true}, 500, 500, 0, maxRT},
		{"be alone", BE, Contention{BE: true}, 0, 0, 0, 1000},
		{"be beside idle", BE, Contention{BE: true}, 0, 500, 0, 1000},
		{"be beside rt", BE, Contention{RT: true, BE: true}, 0, 0, 3, lowBesideRT},
		{"be beside rt and idle", BE, Contention{RT: true}, 0, 5, 3, lowBesideRT - 5},
		{"idle alone", Idle, Contention{}, 0, 0, 0, 1000},
		{"idle beside be", Idle, Contention{BE: true}, 100, 0, 0, idleBesideBE},
		{"idle beside rt", Idle, Contention{RT: true}, 0, 0, 5, idleBesideRT},
		{"idle beside rt and many be", Idle, Contention{RT: true}, lowBesideRT, 0, 5, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := Scheduler{serving: [classes]int{BE: c.be, Idle: c.idle, RT: c.rt}}
			s.serving[c.class] = 0
			for i := range 1000 {
				push(&s, "x", c.class, uint8(i%levels), 1)
			}
			n := 0
			for s.Next(2, c.v) != nil {
				n++
			}
			if n != c.want {
				t.Errorf("%d in service, want %d", n, c.want)
			}
		})
	}
}

// TestSchedulerAges: a stream of better jobs that always fills the room does not keep another
// waiting for much longer than Patience.
func TestSchedulerAges(t *testing.T) {
	v := Contention{RT: true, BE: true}
	for _, victim := range []Job{{Class: Idle}, {Class: BE, Level: 7}} {
		var s Scheduler
		for range lowBesideRT {
			push(&s, "better", BE, 0, 1)
			if s.Next(1, v) == nil {
				t.Fatal("there is no room for the stream")
			}
		}
		victim.Owner = "victim"
		s.Push(&victim, 1)
		now, began := int64(1), int64(0)
		for began == 0 {
			if now > 10*int64(Patience) {
				t.Fatalf("a job of class %d starves", victim.Class)
			}
			now += int64(Patience) / 100
			push(&s, "better", BE, 0, now)
			s.End(BE)
			if j := s.Next(now, v); j == nil {
				t.Fatal("nobody takes the room")
			} else if j.Owner == "victim" {
				began = now
			}
		}
		if began < int64(Patience) || began > int64(Patience)*11/10 {
			t.Errorf("a job of class %d began after %d ns", victim.Class, began)
		}
	}
}

// TestSchedulerNeverStalls plays random loads: whenever somebody waits, somebody is in service; all
// that is pushed is served, once.
func TestSchedulerNeverStalls(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var s Scheduler
		var serving []*Job
		var v Contention
		pushed, served, now := 0, 0, int64(1)
		for step := 0; step < 3000 || s.Queued() > 0; step++ {
			now += int64(rng.IntN(10)) * 1e6
			if rng.IntN(20) == 0 {
				v = Contention{RT: rng.IntN(2) == 0, BE: rng.IntN(2) == 0}
			}
			switch {
			case step < 3000 && rng.IntN(5) < 3:
				pushed++
				s.Push(&Job{Class: Class(rng.IntN(3)), Level: uint8(rng.IntN(10))}, now)
			case len(serving) > 0:
				i := rng.IntN(len(serving))
				s.End(serving[i].Class)
				serving = slices.Delete(serving, i, i+1)
			default:
				continue
			}
			for j := s.Next(now, v); j != nil; j = s.Next(now, v) {
				serving = append(serving, j)
				served++
			}
			if s.Queued() > 0 && len(serving) == 0 {
				t.Fatalf("seed %d: %d wait for nobody", seed, s.Queued())
			}
			if s.Queued() != pushed-served {
				t.Fatalf("seed %d: %d are queued of %d pushed and %d served", seed, s.Queued(), pushed, served)
			}
		}
	}
}

func TestSchedulerAllocatesNothing(t *testing.T) {
	var s Scheduler
	j := &Job{Class: Idle, Owner: "x"}
	n := testing.AllocsPerRun(1000, func() {
		s.Push(j, 1)
		s.End(s.Next(1, Contention{RT: true}).Class)
	})
	if n != 0 {
		t.Errorf("%v allocations per job", n)
	}
}
