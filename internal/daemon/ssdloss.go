package daemon

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/config"
)

// ssdHealth logs how the SSD does. It is called on the background's thread.
func (in *Instance) ssdHealth(e cache.HealthEvent) {
	switch {
	case e.Health == cache.HealthLost:
		in.log.Error("the SSD is lost: the devices go on without it, dirty data excepted; see "+
			"ubcache status", "why", e.Why)
	case e.Health == cache.HealthSlow:
		in.log.Warn("the SSD is slow: reads go to the backing devices", "why", e.Why)
	case e.Was == cache.HealthLost:
		in.log.Info("the SSD is back, and nothing is missing", "why", e.Why)
	default:
		in.log.Info("the SSD is well again", "why", e.Why)
	}
}

// ssdLimits are the limits of the configuration, checked when it was read.
func ssdLimits(c *config.Cache) (stall, loss time.Duration) {
	stall, _ = config.ParseLimit(c.SSDStallLimit)
	loss, _ = config.ParseLimit(c.SSDLossLimit)
	return stall, loss
}

const (
	// ssdLookEvery is how often a lost SSD is looked for, ssdLookTimes how often in a row it must have been
	// found: one that comes and goes is of no use.
	ssdLookEvery = time.Second
	ssdLookTimes = 3
	// Each time that it is lost soon after it was taken back it is looked at twice as long.
	ssdSoon     = 10 * time.Minute
	ssdMostOver = 8
)

// watchSSD takes a lost SSD back when it is there again, under whatever name. It ends with the instance.
func (in *Instance) watchSSD() {
	t := time.NewTicker(ssdLookEvery)
	defer t.Stop()
	w := ssdWatch{in: in}
	for {
		select {
		case <-in.life.Done():
			return
		case <-t.C:
			w.look()
		}
	}
}

// ssdWatch looks for a lost SSD.
type ssdWatch struct {
	in   *Instance
	seen int    // how often in a row it was there
	told string // why it is not used, as the log says
}

// tell logs why the SSD is not used, unless that was the last thing that it said.
func (w *ssdWatch) tell(text string, args ...any) {
	if w.told != text {
		w.in.log.Error("the SSD is back, but is not used: "+text, args...)
	}
	w.told = text
}

// look looks once, and starts anew with an SSD that was found often enough and may be used.
func (w *ssdWatch) look() {
	in := w.in
	loss, lost := in.cache.Loss()
	if !lost {
		w.seen, w.told = 0, ""
		return
	}
	// After a mere stall the engine takes it back by itself; operations that hang would keep this
	// process from ending.
	if loss.Stalled || loss.Busy {
		w.seen = 0
		return
	}
	info, sb := in.ssdThatIsBack()
	if info == nil {
		w.seen = 0
		return
	}
	if w.seen++; w.seen < ssdLookTimes<<min(in.anew, ssdMostOver) {
		return
	}
	w.seen = 0
	dirty, err := in.refusesBack(sb)
	dirty = append(append(dirty, loss.DirtyMissed...), in.givenUp()...)
	if len(dirty) > 0 {
		slices.Sort(dirty)
		w.tell("these devices have changed without it, and it has dirty data of them; stop the cache, then "+
			"ubcache salvage, or ubcache start --drop", "names", strings.Join(slices.Compact(dirty), ", "))
		return
	}
	if now := in.cache.Super(); sb.Epoch < now.Epoch || sb.Seq < now.Seq {
		w.tell("it is a copy from before", "its start", sb.Epoch, "the start that lost it", now.Epoch)
		return
	}
	if err != nil {
		w.tell("a start with it would be refused", "error", err)
		return
	}
	if err := in.opts.rewrite(info, ssdUnused); err != nil {
		w.tell("it cannot be written", "error", err)
		return
	}
	in.startAnew(loss)
}

// ssdUnused is a place on the SSD that nothing is kept at: before the superblocks (cache/FORMAT.md).
const ssdUnused = 60 << 10

// ssdThatIsBack finds the SSD by the way it would be found at a start, and reads its superblock; nil if it is
// not there.
func (in *Instance) ssdThatIsBack() (*blockdev.Info, *cache.Superblock) {
	i, err := in.findSSD()
	if err != nil {
		return nil, nil
	}
	d, err := i.OpenForReading()
	if err != nil {
		return nil, nil
	}
	defer d.Close()
	sb, err := cache.ReadSuper(d)
	if err != nil || sb.UUID.String() != in.conf.UUID {
		return nil, nil
	}
	return i, sb
}

// startAnew executes this program again, which then opens the SSD as after a crash: the block devices
// wait, the journal and the pending ring are replayed, and what the SSD has lost is found out. The process
// keeps its number, so that whoever manages it does not notice.
func (in *Instance) startAnew(loss cache.Loss) {
	if in.opts.Anew == nil {
		return
	}
	in.changing.Lock()
	defer in.changing.Unlock()
	if in.isStopped() {
		return
	}
	in.log.Warn("the SSD is back: starting anew with it", "devices that it missed changes of",
		len(loss.Missed))
	again := 0
	if time.Since(in.started) < ssdSoon {
		again = in.anew + 1
	}
	if err := in.opts.Anew(again); err != nil {
		in.log.Error("cannot start anew with the SSD: restart the daemon", "error", err)
		in.anew++ // it is tried less and less often
	}
}

// envAnew tells a daemon how often in a row it was started anew soon after the time before.
const envAnew = "UBCACHE_ANEW"

// ExecAgain is Options.Anew of a daemon with a process of its own.
func ExecAgain(times int) error {
	env := slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, envAnew+"=") })
	return syscall.Exec("/proc/self/exe", againArgs(os.Args), append(env, fmt.Sprint(envAnew, "=", times)))
}

// startedAnew is what envAnew says.
func startedAnew() int {
	n, _ := strconv.Atoi(os.Getenv(envAnew))
	return max(n, 0)
}

// againArgs leaves out what was said to the first start only: who waits for it, and what it was to give up
// or to keep.
func againArgs(args []string) (again []string) {
	for i := 0; i < len(args); i++ {
		name, _, joined := strings.Cut(args[i], "=")
		if !slices.Contains([]string{"--ready-fd", "--drop", "--keep", "--without-ssd"}, name) {
			again = append(again, args[i])
		} else if !joined {
			i++
		}
	}
	return again
}
