// Package daemon runs a cache: it opens the devices, joins the engine to io_uring and ublk, and
// carries out the commands that come over the control socket.
//
// A daemon serves one cache. Its threads are one per ublk queue, one for the clients that go around
// the block devices (direct.go) and one for the background work; each has a ring with the SSD and the backing devices registered, and drives one lane of the
// engine (driver.go, queue.go, loop.go). Everything else happens on ordinary goroutines, under
// Instance.mu.
//
// # Death
//
// The devices survive the daemon's death: their I/O waits in the kernel until the next daemon
// takes them over. Its order of start is what makes that safe: it waits until it has SSD and
// backing devices for itself, which the old daemon's rings keep until the last of their I/O is
// over; replays the journal and the pending ring; and only then takes over the ublk devices.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ubcache/cache"
	"ubcache/internal/blkbpf"
	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/missed"
	"ubcache/internal/report"
	"ubcache/ublk"
)

// Options say which cache to run and how.
type Options struct {
	Name       string // of the cache in the configuration
	ConfigPath string
	// AnyRuntimeDir allows a runtime folder that is not on tmpfs.
	AnyRuntimeDir bool
	// NoUblk runs the engine without block devices: for tests, and where clients use the direct
	// channel only.
	NoUblk bool
	// Direct bounds the clients that talk to the cache over shared memory.
	Direct DirectOptions
	// Wait bounds how long the devices of a dying daemon are waited for.
	Wait time.Duration
	// Anew executes the program again, to take a lost SSD back; nil: that is not possible.
	// times says how often in a row that has been so.
	Anew func(times int) error
	// Drop names backing devices of which nothing that is cached is to be used, dirty data included, and
	// Keep those that may have been changed without the cache.
	Drop, Keep []string
	// WithoutSSD names those that are to be served if the SSD is not there, although that may have dirty data.
	WithoutSSD []string
	// alive finds out whether a device is still there, and rewrite whether it can be written; tests change them.
	alive   func(*blockdev.Device) error
	rewrite func(i *blockdev.Info, off int64) error
	// Note is told in a few words what takes time.
	Note func(string)
}

// Instance is a running cache.
type Instance struct {
	opts Options
	log  *slog.Logger
	dir  string // runtime folder
	// stateDir is for what outlives a reboot; drop has the backing devices that the SSD missed changes of.
	stateDir string
	drop     []cache.UUID
	// doubted are those of which nobody knew how much dirty data the SSD had when they were changed without it.
	doubted []cache.UUID
	// newer is the copy of the superblock if the SSD is an older one; see checkAge.
	newer *cache.Superblock
	// copied is the copy of the superblock of a start without the SSD, and without what can be served then.
	copied  *cache.Superblock
	without map[string]withoutSSD
	lost    bool // it ends without its SSD, or without having written to it
	anew    int  // how often it was started anew with an SSD that was lost soon after
	conf    *config.Cache
	started time.Time

	lock    *os.File // of the cache's name
	ssd     *blockdev.Device
	ssdInfo *blockdev.Info
	pending *pendingRing
	cache   *cache.Cache
	bg      *loop
	kernel  ublk.Features
	rules   *ruleSet
	tenants tenantLimits
	// guards watch the backing devices that are there, by number.
	guards [cache.MaxBackings + 1]atomic.Pointer[guard]
	traced tracedFailures

	mu struct {
		sync.Mutex
		served  map[cache.BackingID]*served
		stopped bool
		direct  *direct // nil: not served
		// bpf reads what the kernel knows of requests; nil for the reason in bpfProblem.
		bpf        *blkbpf.Source
		bpfProblem string
	}
	// changing is held by attach, detach and stop for as long as they take, one at a time.
	changing sync.Mutex
	// using is read-locked by whoever asks the engine something, and locked for its end.
	using sync.RWMutex
	// life ends when the engine is about to.
	life context.Context
	kill context.CancelFunc

	done     chan struct{} // closed when the instance has stopped
	doneOnce sync.Once
}

// served is a backing device of the running cache.
type served struct {
	name    string
	b       *cache.Backing
	dev     *blockdev.Device // nil: missing
	problem string           // why it is missing or not served
	ublk    *ublk.Device     // nil: no block device
	queues  []*queue
	shared  sharing
	kernel  kernelSource
	link    string
	rules   deviceRules
	scrub   cache.ScrubReport // of the last scrub, guarded by Instance.mu
	guard   *guard            // nil: there is no device
}

// Start opens a cache and serves its devices.
func Start(ctx context.Context, o Options) (*Instance, error) {
	if o.Note == nil {
		o.Note = func(string) {}
	}
	if o.alive == nil {
		o.alive = (*blockdev.Device).Alive
	}
	if o.rewrite == nil {
		o.rewrite = (*blockdev.Info).Rewrite
	}
	if o.Wait == 0 {
		o.Wait = 30 * time.Second
	}
	what := "start cache " + o.Name
	file, err := config.Load(o.ConfigPath)
	if err != nil {
		return nil, err
	}
	conf := file.Caches[o.Name]
	if conf == nil {
		return nil, report.Fail(what, "no such cache in "+o.ConfigPath,
			"ubcache format makes one")
	}
	in := &Instance{
		opts: o, conf: conf, dir: control.RuntimeDir(file.RuntimeDir), started: time.Now(),
		stateDir: missed.Dir(file.StateDir), anew: startedAnew(),
		log: slog.With("cache", o.Name), done: make(chan struct{}), rules: newRuleSet(),
	}
	in.traced.log = in.log
	in.mu.served = map[cache.BackingID]*served{}
	in.life, in.kill = context.WithCancel(context.Background())
	if err := in.start(ctx); err != nil {
		in.abandon()
		return nil, wrapOnce(what, err)
	}
	return in, nil
}

// wrapOnce says what failed unless the error does so itself.
func wrapOnce(what string, err error) error {
	var e *report.Error
	if errors.As(err, &e) && e.What != "" && e.Error() == err.Error() {
		return err
	}
	return report.Wrap(what, err, "")
}

func (in *Instance) start(ctx context.Context) error {
	// What is served does not change before all of it is: no device is replaced meanwhile.
	in.changing.Lock()
	defer in.changing.Unlock()
	if err := control.MakeRuntimeDir(in.dir); err != nil {
		return err
	}
	if err := in.takeName(ctx); err != nil {
		return err
	}
	if err := in.checkKernel(); err != nil {
		return err
	}
	if err := in.openDevices(ctx); err != nil {
		return err
	}
	if err := in.openCache(); err != nil {
		return err
	}
	if err := in.applyConfig(); err != nil {
		return err
	}
	if in.ssd != nil {
		if err := in.forgetMissed(); err != nil {
			return err
		}
		sb := in.cache.Super()
		if err := in.keepSuper(&sb); err != nil {
			return err
		}
	}
	in.recordGivenUp()
	if err := in.startBackground(); err != nil {
		return err
	}
	if err := in.serveAll(ctx); err != nil {
		return err
	}
	in.settleShares(ctx)
	if err := in.startDirect(); err != nil {
		return err
	}
	in.startKernelSource()
	go in.tendShares()
	return nil
}

// checkKernel fails early, before anything is touched.
func (in *Instance) checkKernel() (err error) {
	if in.opts.NoUblk {
		return nil
	}
	in.kernel, err = ublk.Probe()
	if err != nil {
		return report.Wrap("use ublk", err, "")
	}
	if !in.kernel.Has(ublk.FeatureRecovery | ublk.FeatureRecoveryReissue | ublk.FeatureUserCopy) {
		return report.Refuse("use ublk", "this kernel's ublk lacks user recovery or user copy",
			"needs Linux 6.12 or newer; see ubcache features")
	}
	return nil
}

// openDevices takes the SSD and the backing devices for this process. All that can be refused is
// refused here.
func (in *Instance) openDevices(ctx context.Context) error {
	var err error
	ctx, cancel := context.WithTimeout(ctx, in.opts.Wait)
	defer cancel()
	if in.ssdInfo, err = in.waitForSSD(ctx); err != nil {
		if !isMissing(err) {
			return in.openRestored(ctx, err)
		}
		if ok, werr := in.goWithout(ctx, err); ok || werr != nil {
			return werr
		}
		return report.Wrap("start cache "+in.opts.Name, err, in.withoutSSDHint())
	}
	if same, err := filepath.EvalSymlinks(in.conf.Device); err != nil || same != in.ssdInfo.Path {
		in.log.Info("the SSD has another name than in the configuration", "configured", in.conf.Device,
			"found", in.ssdInfo.Path)
	}
	if in.ssd, err = in.openPatiently(ctx, in.ssdInfo); err != nil {
		return err
	}
	sb, err := cache.ReadSuper(in.ssd)
	if err != nil {
		err = CacheError("open cache on "+in.ssdInfo.Path, err)
		if sb, _ = in.restoreSuper(); sb == nil {
			if ok, werr := in.goWithoutSupers(ctx, err); ok || werr != nil {
				return werr
			}
			return err
		}
	}
	return in.openWith(ctx, sb)
}

// openWith opens what the cache on the SSD needs besides.
func (in *Instance) openWith(ctx context.Context, sb *cache.Superblock) error {
	if sb.UUID.String() != in.conf.UUID {
		return report.Refuse("open cache on "+in.ssdInfo.Path,
			"it holds cache "+sb.UUID.String()+", not "+in.conf.UUID,
			"correct the configuration")
	}
	// Data that finds no space goes past the SSD, metadata has no other place.
	if err := in.ssd.Reserve(sb.Geometry.DataOff); err != nil {
		return report.Wrap("open cache on "+in.ssdInfo.Path, err, "free some space on its filesystem")
	}
	if err := in.checkAge(sb); err != nil {
		return err
	}
	if in.newer != nil {
		sb.Clean = false // what it says of the backing devices is of an earlier stop
	}
	return in.openBackings(ctx, sb)
}

// CacheError is what people are told when a cache cannot be read.
func CacheError(what string, err error) error {
	switch {
	case errors.Is(err, cache.ErrNewer): // it says itself what to do
		return report.Refuse(what, err.Error(), "")
	case errors.Is(err, cache.ErrNotCache):
		return report.Refuse(what, err.Error(), "ubcache format makes one")
	case errors.Is(err, cache.ErrTooSmall):
		return report.Refuse(what, err.Error(), "")
	case errors.Is(err, cache.ErrDirtyDamage):
		return report.Refuse(what, err.Error(), "ubcache check tells more, ubcache salvage saves what is left of the "+
			"dirty data, and start --drop NAME gives it up")
	case errors.Is(err, cache.ErrCorrupt):
		return report.Wrap(what, err, "ubcache check tells more, ubcache salvage saves the dirty data that is left")
	}
	return report.Wrap(what, err, "")
}

// openPatiently waits for a device that somebody has, and says so.
func (in *Instance) openPatiently(ctx context.Context, i *blockdev.Info) (*blockdev.Device, error) {
	expired, cancel := context.WithCancel(ctx)
	cancel()
	d, err := i.Open(expired) // one try
	if !errors.Is(err, blockdev.ErrBusy) {
		return d, err
	}
	if i.Users() != "" {
		return nil, err // a mount or a holder does not go away by itself
	}
	in.opts.Note("waiting for " + i.Path + " (" + err.Error() + ")")
	d, err = i.Open(ctx)
	if errors.Is(err, blockdev.ErrBusy) {
		return nil, report.Refuse("open "+i.Path, "still in use after "+in.opts.Wait.String(),
			err.Error())
	}
	return d, err
}

// openCache loads the index and replays what a killed daemon has left.
func (in *Instance) openCache() error {
	if in.ssd == nil {
		return in.openWithout()
	}
	sb, err := cache.ReadSuper(in.ssd)
	if err != nil {
		return err
	}
	if in.pending, err = openPending(in.dir, sb.UUID, in.opts.AnyRuntimeDir); err != nil {
		return err
	}
	if !sb.Clean {
		in.opts.Note("the cache was not stopped in order: replaying its journal")
	}
	stall, loss := ssdLimits(in.conf)
	in.cache, err = cache.Open(in.ssd, cache.Options{
		Pending: in.pending.mem, Discard: in.conf.Discard && in.ssdInfo.Discard,
		StallLimit: stall, LossLimit: loss, Missed: in.markMissed, Drop: in.drop, Health: in.ssdHealth,
		Confirm: in.confirmUnused, GiveUp: in.dropped(),
		Suspect: in.suspect, After: in.newer,
	})
	if report.CodeOf(err) == report.Refused {
		return err
	}
	if err != nil {
		return CacheError("open cache on "+in.ssdInfo.Path, err)
	}
	if s := in.cache.Repaired(); s != "" {
		in.log.Warn("damage on the SSD was repaired", "found", s)
		in.opts.Note("damage on the SSD was repaired: " + s)
	}
	return nil
}

// startBackground starts the background lane with the devices that are there.
func (in *Instance) startBackground() (err error) {
	for _, s := range in.list() {
		if s.dev != nil {
			in.startGuard(s)
		}
	}
	in.bg, err = startLoop(in.cache, true, func(l *loop) error {
		if err := l.setFile(cache.SSD, driverDevice(in.ssd)); err != nil {
			return err
		}
		for id, s := range in.mu.served {
			if s.dev == nil {
				continue
			}
			if err := l.setFile(id, driverDevice(s.dev)); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// list is the backing devices in order of their numbers.
func (in *Instance) list() []*served {
	in.mu.Lock()
	defer in.mu.Unlock()
	var all []*served
	for _, id := range slices.Sorted(maps.Keys(in.mu.served)) {
		all = append(all, in.mu.served[id])
	}
	return all
}

// find returns the backing device of that name.
func (in *Instance) find(name string) (*served, error) {
	for _, s := range in.list() {
		if s.name == name {
			return s, nil
		}
	}
	return nil, report.Fail("find "+name, fmt.Sprintf("cache %s has no such backing device",
		in.opts.Name), "ubcache status lists them")
}

// Done is closed when the instance has stopped.
func (in *Instance) Done() <-chan struct{} { return in.done }

// Socket is the path of the control socket.
func (in *Instance) Socket() string { return control.SocketPath(in.dir, in.opts.Name) }
