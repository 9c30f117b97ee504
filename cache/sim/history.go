package sim

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"reflect"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// history is a history that can be played again: a seed, what differs from the configuration that it
// draws, and which steps are played.
type history struct {
	cfg  Config
	keep []bool // all if nil
}

// newHistory is the history of a replay command.
func newHistory(seed uint64, set, keep string) (history, error) {
	h := history{cfg: NewConfig(seed)}
	if set != "" {
		for _, kv := range strings.Split(set, ",") {
			name, value, _ := strings.Cut(kv, "=")
			if err := h.cfg.set(name, value); err != nil {
				return h, err
			}
		}
	}
	if keep == "" {
		return h, nil
	}
	h.keep = make([]bool, h.cfg.Steps)
	for _, r := range strings.Split(keep, ",") {
		from, to, isRange := strings.Cut(r, "-")
		if !isRange {
			to = from
		}
		lo, err1 := strconv.Atoi(from)
		hi, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || lo < 0 || hi < lo || hi >= len(h.keep) {
			return h, fmt.Errorf("steps %q: not within 0 and %d", r, len(h.keep)-1)
		}
		for i := lo; i <= hi; i++ {
			h.keep[i] = true
		}
	}
	return h, nil
}

// set gives a field of the configuration a value.
func (c *Config) set(name, value string) error {
	f := reflect.ValueOf(c).Elem().FieldByName(name)
	if !f.IsValid() || name == "Seed" {
		return fmt.Errorf("no field %q in the configuration", name)
	}
	n, err := strconv.ParseInt(value, 0, 64)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	switch f.Kind() {
	case reflect.Bool:
		f.SetBool(n != 0)
	case reflect.Uint32:
		f.SetUint(uint64(n))
	default:
		f.SetInt(n)
	}
	return nil
}

// settings is what set needs to make the configuration of the seed this one.
func (c *Config) settings() string {
	was := NewConfig(c.Seed)
	a, b := reflect.ValueOf(was), reflect.ValueOf(*c)
	var all []string
	for i := range a.NumField() {
		if a.Field(i).Interface() == b.Field(i).Interface() {
			continue
		}
		v := b.Field(i)
		value := "0"
		switch {
		case v.CanInt():
			value = strconv.FormatInt(v.Int(), 10)
		case v.CanUint():
			value = strconv.FormatUint(v.Uint(), 10)
		case v.Bool():
			value = "1"
		}
		all = append(all, a.Type().Field(i).Name+"="+value)
	}
	return strings.Join(all, ",")
}

// goTest begins the commands that replay a failure. Tests change it when they change the engine.
var goTest = "go test ./cache/sim"

// command replays the history, with a trace.
func (h *history) command() string {
	s := fmt.Sprintf("%s -run Histories -v -seed %d", goTest, h.cfg.Seed)
	if set := h.cfg.settings(); set != "" {
		s += " -set " + set
	}
	if h.keep != nil {
		s += " -keep " + ranges(h.keep)
	}
	return s
}

// ranges writes a set of steps as -keep reads it.
func ranges(keep []bool) string {
	var all []string
	for i := 0; i < len(keep); i++ {
		if !keep[i] {
			continue
		}
		from := i
		for i+1 < len(keep) && keep[i+1] {
			i++
		}
		if from == i {
			all = append(all, strconv.Itoa(i))
		} else {
			all = append(all, fmt.Sprintf("%d-%d", from, i))
		}
	}
	if all == nil {
		return "0" // an empty list would be all of them
	}
	return strings.Join(all, ",")
}

// play plays it. A panic of the engine is an error like others.
func (h *history) play(trace func(string, ...any)) (r Result, err error) {
	s, err := New(h.cfg)
	if err != nil {
		return Result{}, err
	}
	s.Trace, s.Keep = trace, h.keep
	defer s.catch(&err)
	defer s.Close()
	return s.Run()
}

// catch turns a panic into an error.
func (s *Sim) catch(err *error) {
	if p := recover(); p != nil {
		if s.err != nil { // it went on with what had failed
			*err = s.err
			return
		}
		*err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
	}
}

// progressEvery is how often playMany says how far it is.
const progressEvery = 5 * time.Minute

// playMany plays that many seeds from one on, or as long as it is told or until it is interrupted, on all CPUs, each as
// draw has it. It stops at the first failure, which it shrinks.
func playMany(draw func(seed uint64) Config, from, n uint64, long time.Duration,
	log func(string, ...any),
) (Result, error) {
	var next atomic.Uint64
	next.Store(from)
	var mu sync.Mutex
	var total Result
	var failed *history
	var failure error
	start := time.Now()
	over, cancel := context.WithCancel(context.Background())
	if long != 0 { // else it would pass without having played them all
		over, cancel = signal.NotifyContext(over, os.Interrupt, syscall.SIGTERM)
		context.AfterFunc(over, cancel) // the next one ends the process
	}
	defer cancel()
	said := start
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // histories have little memory, and make much garbage
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				seed := next.Add(1) - 1
				if over.Err() != nil || long == 0 && seed >= from+n || long != 0 && time.Since(start) > long {
					return
				}
				h := history{cfg: draw(seed)}
				r, err := h.play(nil)
				mu.Lock()
				if err != nil && failure == nil {
					failed, failure = &h, err
				}
				stop := failure != nil
				total.add(&r)
				if long != 0 && time.Since(said) > progressEvery {
					said = time.Now()
					log("%v: %d histories, %d crashes", time.Since(start).Round(time.Second), total.Histories, total.Crashes)
				}
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	wg.Wait()
	total.Took = time.Since(start)
	if failure == nil {
		if over.Err() != nil {
			log("interrupted after %v", total.Took.Round(time.Second))
		}
		return total, nil
	}
	cancel()
	log("seed %d: %v", failed.cfg.Seed, failure)
	small, err := failed.shrink(shrinkFor)
	return total, fmt.Errorf("%w\n\nreplay it with\n\n    %s", err, small.command())
}

// add adds the counts of another history, or of several.
func (r *Result) add(o *Result) {
	if o.Crashes > 0 && o.Histories == 0 {
		r.Crashed++
	}
	r.Histories += max(1, o.Histories)
	a, b := reflect.ValueOf(r).Elem(), reflect.ValueOf(o).Elem()
	for i := range a.NumField() {
		switch f := a.Field(i); f.Kind() {
		case reflect.Array:
			for j := range f.Len() {
				f.Index(j).SetInt(f.Index(j).Int() + b.Field(i).Index(j).Int())
			}
		default:
			if name := a.Type().Field(i).Name; name != "Histories" && name != "Crashed" {
				f.SetInt(f.Int() + b.Field(i).Int())
			}
		}
	}
	r.Crashed += o.Crashed
}

// String is a report of many histories.
func (r *Result) String() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	p("%d histories in %v, %d of them with crashes; %d requests, %d of them failed as they may, "+
		"%d dirty blocks lost to faults and replaced\n", r.Histories, r.Took.Round(time.Millisecond),
		r.Crashed, r.Requests, r.Failed, r.Lost)
	p("  %d crashes:", r.Crashes)
	for i, n := range r.Cuts {
		p(" %d %v;", n, Crash(i))
	}
	p(" %d starts crashed, %d refused\n  faults:", r.CrashedStarts, r.RefusedStarts)
	for i, n := range r.Faults {
		p(" %d %v;", n, Fault(i))
	}
	p("\n  lost SSD: %d times by faults; taken back %d times, %d of them warm, left to the operator %d times",
		r.GivenUp, r.Returned, r.ReturnedWarm, r.Over)
	p("\n  SSD away %d times; backing devices away %d times, given back %d times, had forgotten something %d times, which "+
		"%d FLUSHes reported", r.Vanished, r.Gone, r.GivenBack, r.Forgotten, r.Reported)
	p("\n  orderly restarts: %d, with requests while the index was loaded; %d indexes loaded late, in which %d "+
		"copies had become obsolete", r.Restarts, r.Loaded, r.LateDropped)
	p("\n  engine: %d hits, %d evicted, %d written back, %d moved, %d healed, %d checkpoints\n",
		r.Hits, r.Evicted, r.WrittenBack, r.Moved, r.Healed, r.Checkpoints)
	p("  salvaged: %d dirty blocks after %d crashes; scrubbed: %d blocks by %d scrubs\n", r.SalvagedBlocks, r.Salvaged,
		r.Scrubbed, r.Scrubs)
	p("  warm: %d clean blocks after power cuts, %d after kills, %d with the SSD back\n", r.WarmCut, r.WarmKilled, r.WarmBack)
	p("  retired: %d buckets, %d of them empty afterwards\n", r.Retired, r.Emptied)
	p("  detached: %d devices, %d of them by force\n", r.Detached, r.Forced)
	p("  attributes: %d pins, %d evictions; %d refused, %d mismatched, %d late\n",
		r.Pins, r.Evictions, r.Refused, r.Mismatched, r.Late)
	p("  %d reads left in the client's memory, which it meddled with %d times", r.Placed, r.Meddled)
	return b.String()
}

// missing says what a large number of histories should have met, and has not.
func (r *Result) missing() (all []string) {
	miss := func(n int64, what any) {
		if n == 0 {
			all = append(all, fmt.Sprintf("the histories miss: %v", what))
		}
	}
	for i, n := range r.Cuts {
		miss(int64(n), Crash(i))
	}
	for i, n := range r.Faults {
		miss(int64(n), Fault(i))
	}
	for what, n := range map[string]int64{
		"hits": r.Hits, "evictions": r.Evicted, "writeback": r.WrittenBack, "moves": r.Moved,
		"reads into clients' memory": int64(r.Placed), "meddling clients": int64(r.Meddled),
		"healed blocks": r.Healed, "checkpoints": r.Checkpoints, "pins": int64(r.Pins),
		"evict hints": int64(r.Evictions), "refused requests": int64(r.Refused),
		"mismatches": int64(r.Mismatched), "missed deadlines": int64(r.Late),
		"crashed starts": int64(r.CrashedStarts), "refused starts": int64(r.RefusedStarts),
		"failed requests": int64(r.Failed), "lost blocks": int64(r.Lost),
		"vanished SSDs": int64(r.Vanished), "SSDs that are back": int64(r.Returned),
		"backing devices away": int64(r.Gone), "backing devices back": int64(r.GivenBack),
		"forgetful backing devices": int64(r.Forgotten), "reported losses": int64(r.Reported),
		"salvaged blocks": int64(r.SalvagedBlocks), "scrubs": int64(r.Scrubs), "detaches": int64(r.Detached), "forced detaches": int64(r.Forced), "orderly restarts": int64(r.Restarts), "late loads": int64(r.Loaded),
		"copies that were obsolete when they were loaded": r.LateDropped,
		"clean blocks that a power cut leaves":            r.WarmCut, "clean blocks that a kill leaves": r.WarmKilled,
		"clean blocks of an SSD that is back": r.WarmBack, "retired buckets that are empty": int64(r.Emptied),
	} {
		miss(n, what)
	}
	if n := r.Histories - r.Crashed - r.Over; n > 0 { // these end early
		all = append(all, fmt.Sprintf("%d histories had no crash", n))
	}
	return all
}
