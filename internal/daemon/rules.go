package daemon

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs/rules"
	"ubcache/internal/blkbpf"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/extents"
)

// ruleTable is where the queues of a device find its rules. Load returns nil if there are none.
type ruleTable = atomic.Pointer[rules.Table]

// ruleSet keeps the rules of all devices of a cache up to date: it has the tables compiled anew when
// a rule, the extents of a file or the cgroups below a folder change. Queues only look at the tables.
type ruleSet struct {
	files *extents.Client
	// known are the properties that requests come with; queues tell.
	known atomic.Uint32

	mu struct {
		sync.Mutex
		devices map[*deviceRules]struct{}
		watched map[uint64]*rule // by the ID of their Spec
		nextID  uint64
	}
	stop    chan struct{}
	stopped sync.WaitGroup
}

// deviceRules are the rules of one device. The zero value has none.
type deviceRules struct {
	table ruleTable
	// kernel knows of the device's requests what rules ask for; nil without BPF. Under ruleSet.mu.
	kernel *blkbpf.Device
	list   []*rule // under ruleSet.mu
	size   int64   // of the device, in bytes
	// target is the block device that the extents of files are on; the zero value if there is none.
	target extents.Device
	// problem is why there is no table that fits the list.
	problem string
}

// rule is a rule of a device; all of it is under ruleSet.mu.
type rule struct {
	of     *deviceRules
	conf   config.Rule
	parsed rules.Rule
	count  *rules.Count
	// watch is the ID of its Spec; 0 if its path is not watched.
	watch  uint64
	found  extents.Update
	answer chan struct{} // closed by the first update that says whether the path was found
	looked chan struct{} // closed when its files have been looked at
	// noUser and noCgroup are what is wrong with its user and cgroup, tooMany that its extents and those
	// of the rules before it are more than a table can have.
	noUser, noCgroup string
	tooMany          bool
}

// cgroupsEvery is how often cgroups are looked for in the folders that rules name.
const cgroupsEvery = 2 * time.Second

// WatchFilesCommand is the command of this program that runs the process which watches files.
const WatchFilesCommand = "watch-files"

func newRuleSet() *ruleSet {
	s := &ruleSet{stop: make(chan struct{})}
	s.mu.devices, s.mu.watched = map[*deviceRules]struct{}{}, map[uint64]*rule{}
	s.files = extents.NewClient(watchFiles, s.update)
	s.stopped.Go(s.run)
	return s
}

// watchFiles is the process that watches files. Signals from the terminal are not for it: it ends with
// the daemon.
func watchFiles() *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", WatchFilesCommand)
	cmd.Args[0] = os.Args[0]
	cmd.Dir, cmd.Stderr = "/", os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// close ends the watching; the tables stay as they are.
func (s *ruleSet) close() {
	close(s.stop)
	s.stopped.Wait()
	s.files.Close()
}

// run looks for cgroups from time to time.
func (s *ruleSet) run() {
	t := time.NewTicker(cgroupsEvery)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
			s.refreshCgroups()
		}
	}
}

// load takes the rules of a device from the configuration, which has checked them.
func (s *ruleSet) load(d *deviceRules, size int64, list []config.Rule) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.size = size
	s.mu.devices[d] = struct{}{}
	for i := range list {
		r, err := s.make(d, list[i])
		if err != nil {
			return fmt.Errorf("rule %s: %w", list[i].Label(i+1), err)
		}
		d.list = append(d.list, r)
	}
	s.compile(d)
	return nil
}

// drop gives up a device and its rules.
func (s *ruleSet) drop(d *deviceRules) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.devices, d)
	for _, r := range d.list {
		s.unwatch(r)
	}
	d.list = nil
	s.compile(d)
}

// make makes a rule that is not in the list yet. s.mu is held.
func (s *ruleSet) make(d *deviceRules, conf config.Rule) (*rule, error) {
	r := &rule{of: d, conf: conf, count: &rules.Count{}}
	var err error
	if r.parsed, err = conf.Parse(); err != nil {
		return nil, err
	}
	r.parsed.Count = r.count
	for i := range r.parsed.Ranges {
		r.parsed.Ranges[i].End = min(r.parsed.Ranges[i].End, d.size)
	}
	r.parsed.Ranges = rules.Join(r.parsed.Ranges)
	r.lookUpUser()
	r.setCgroups(lookUpCgroups(conf.Cgroup))
	return r, nil
}

// compile makes the table anew. A rule of which something is not known has no ranges or no cgroups,
// and so matches nothing. s.mu is held.
func (s *ruleSet) compile(d *deviceRules) {
	list := make([]rules.Rule, len(d.list))
	total := 0
	for i, r := range d.list {
		list[i] = r.parsed
		if r.conf.Path != "" {
			list[i].Ranges = r.found.Ranges
		}
		if r.noUser != "" {
			list[i].Ranged, list[i].Ranges = true, nil
		}
		r.tooMany = total+len(list[i].Ranges) > rules.MaxRanges
		if r.tooMany {
			list[i].Ranges = nil
		}
		total += len(list[i].Ranges)
	}
	t, err := rules.Compile(list)
	d.problem = ""
	if err != nil {
		d.problem = err.Error()
	}
	d.setTable(t) // nil after an error: no rule is better than one for other data
}

// setTable gives queues another table. Only rules look at requests from which no attribute follows by itself; those that
// come after the table are known. ruleSet.mu is held.
func (d *deviceRules) setTable(t *rules.Table) {
	if d.kernel != nil && t != nil {
		d.kernel.ShowAll(true)
	}
	d.table.Store(t)
	if d.kernel != nil && t == nil {
		d.kernel.ShowAll(false)
	}
}

// setKernel tells who knows of a device's requests from now on, nil for nobody.
func (s *ruleSet) setKernel(d *deviceRules, k *blkbpf.Device) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.kernel = k
	d.setTable(d.table.Load())
}

// serve tells on which block device the extents of files are to be found, or that there is none any
// more, with the zero value.
func (s *ruleSet) serve(d *deviceRules, target extents.Device) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.target = target
	for _, r := range d.list {
		s.unwatch(r)
		s.watch(r)
	}
	s.compile(d)
}

// watch begins to look for the path of a rule. s.mu is held.
func (s *ruleSet) watch(r *rule) {
	if r.conf.Path == "" || r.of.target == (extents.Device{}) {
		return
	}
	s.mu.nextID++
	r.watch = s.mu.nextID
	r.answer, r.looked = make(chan struct{}), make(chan struct{})
	s.mu.watched[r.watch] = r
	s.files.Watch(extents.Spec{ID: r.watch, Path: r.conf.Path, Target: r.of.target})
}

// unwatch ends that, and forgets what was found. s.mu is held.
func (s *ruleSet) unwatch(r *rule) {
	if r.watch != 0 {
		delete(s.mu.watched, r.watch)
		s.files.Drop(r.watch)
	}
	r.watch, r.found = 0, extents.Update{}
}

// update takes what was found out about a path.
func (s *ruleSet) update(u extents.Update) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.mu.watched[u.ID]
	if r == nil {
		return
	}
	had := len(r.found.Ranges)
	r.found = u
	closeOnce(r.answer)
	if !u.Looking {
		closeOnce(r.looked)
	}
	if had > 0 || len(u.Ranges) > 0 {
		s.compile(r.of)
	}
}

func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

// setKnown says which properties requests come with: those that need BPF, if it is loaded.
func (s *ruleSet) setKnown(k rules.Known) { s.known.Store(uint32(k)) }

// status lists the rules of a device.
func (s *ruleSet) status(name string, d *deviceRules) []control.Rule {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []control.Rule{}
	for i, r := range d.list {
		list = append(list, s.ruleStatus(name, i, r))
	}
	return list
}

// ruleStatus describes rule number i. s.mu is held.
func (s *ruleSet) ruleStatus(name string, i int, r *rule) control.Rule {
	st := control.Rule{
		Device: name, Number: i + 1, Rule: r.conf,
		Requests: r.count.Requests(), RequestBytes: r.count.Bytes(),
		Files: r.found.Files, Problem: r.trouble(rules.Known(s.known.Load())),
	}
	ranges := r.parsed.Ranges
	if r.conf.Path != "" {
		ranges = r.found.Ranges
		st.Resolving = r.watch != 0 && !isClosed(r.looked)
	}
	st.Extents = len(ranges)
	for _, a := range ranges {
		st.Bytes += a.End - a.Off
	}
	return st
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// trouble is what keeps a rule from matching all that it should.
func (r *rule) trouble(known rules.Known) string {
	missing := r.parsed.Needs() &^ known
	switch {
	case r.of.problem != "":
		return r.of.problem
	case r.noUser != "":
		return r.noUser
	case r.noCgroup != "":
		return r.noCgroup
	case r.tooMany:
		return fmt.Sprintf("not applied: the rules of a device can have %d extents together",
			rules.MaxRanges)
	case missing != 0:
		return fmt.Sprintf("without BPF a request's %v is not known", missing)
	case r.conf.Path != "" && r.watch == 0:
		return "the device is not served as a block device"
	}
	return r.found.Problem
}

// deviceOf is the number of a block device.
func deviceOf(path string) (extents.Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return extents.Device{}, fmt.Errorf("find %s: %w", path, err)
	}
	return extents.DeviceOf(st.Rdev), nil
}

// problems is the number of rules of a device, and what is wrong with some of them.
func (s *ruleSet) problems(d *deviceRules) (n int, list []string) {
	for _, r := range s.status("", d) {
		n++
		if r.Problem != "" {
			list = append(list, fmt.Sprintf("rule %s: %s", r.Label(r.Number), r.Problem))
		}
	}
	return n, list
}
