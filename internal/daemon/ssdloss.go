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
	seen, told := 0, ""
	tell := func(text string, args ...any) {
		if told != text {
			in.log.Error("the SSD is back, but is not used: "+text, args...)
		}
		told = text
	}
	for {
		select {
		case <-in.life.Done():
			return
		case <-t.C:
		}
		loss, lost := in.cache.Loss()
		if !lost {
			seen, told = 0, ""
			continue
		}
		// After a mere stall the engine takes it back by itself; operations that hang would keep this
		// process from ending.
		if loss.Stalled || loss.Busy {
			seen = 0
			continue
		}
		info, sb := in.ssdThatIsBack()
		if info == nil {
			seen = 0
			continue
		}
		if seen++; seen < ssdLookTimes<<min(in.anew, ssdMostOver) {
			continue
		}
		seen = 0
		loss.DirtyMissed = append(loss.DirtyMissed, in.givenUp()...)
		if len(loss.DirtyMissed) > 0 {
			tell("these devices have changed without it, and it has dirty data of them; stop the cache, then "+
				"ubcache salvage, or ubcache start --drop", "names", strings.Join(loss.DirtyMissed, ", "))
			continue
		}
		if now := in.cache.Super().Epoch; sb.Epoch < now {
			tell("it is a copy from before", "its start", sb.Epoch, "the start that lost it", now)
			continue
		}
		if err := info.Rewrite(ssdUnused); err != nil {
			tell("it cannot be written", "error", err)
			continue
		}
		in.startAnew(loss)
	}
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
