//go:build vm

package vmtest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cgroup is a control group for the daemons of a test.
type cgroup string

func newCgroup(t *testing.T) cgroup {
	t.Helper()
	const root = "/sys/fs/cgroup"
	g := cgroup(filepath.Join(root, "ubcache-test"))
	Sh(t, "echo +memory >"+root+"/cgroup.subtree_control; mkdir "+string(g))
	t.Cleanup(func() {
		// The last daemon may be ending.
		Wait(t, 30*time.Second, "removal of the control group", func() bool { return unix.Rmdir(string(g)) == nil })
	})
	return g
}

// start is [Cache.Start], with the daemon in the group.
func (g cgroup) start(t *testing.T) {
	t.Helper()
	Sh(t, "echo $$ >"+string(g)+"/cgroup.procs; exec ubcache start")
}

func (g cgroup) limit(t *testing.T, bytes string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(string(g), "memory.max"), []byte(bytes), 0); err != nil {
		t.Fatal(err)
	}
}

// oomKills is how many processes of the group the kernel has killed for lack of memory.
func (g cgroup) oomKills(t *testing.T) (n int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(string(g), "memory.events"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		_, _ = fmt.Sscanf(line, "oom_kill %d", &n)
	}
	return n
}

// kill has the kernel kill the daemon: the group may have far less memory than it uses. Without its protection from the OOM
// killer, which has others die first in a machine that is out of memory.
func (g cgroup) kill(t *testing.T, pid int) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	kills := g.oomKills(t)
	g.limit(t, "2M")
	Wait(t, time.Minute, "the kernel to kill the daemon", func() bool { return g.oomKills(t) > kills })
	Wait(t, time.Minute, "the daemon's end", func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
	g.limit(t, "max")
}

// TestOutOfMemory has the kernel kill the daemon under load because there is no memory for it: writers wait for the next
// daemon, which has all that was acknowledged, and all that was cached.
func TestOutOfMemory(t *testing.T) {
	OnlyFull(t)
	Limit(t, 4*time.Minute)
	g := newCgroup(t)
	u := startUnderLoad(t)
	y := Fault(t, "daemon killed by the kernel for lack of memory")
	// Beside what fio and the probe verify: a range that is read as a whole after each kill.
	o := NewOracle(t, u.c.Device(t, "data").Path, 140<<20, 3<<20)
	rnd := rand.New(rand.NewPCG(4, 2))
	u.c.terminate(t)
	g.start(t)
	var beyond []time.Duration
	for range repeats(t, 2) {
		u.busy(t)
		y.Tried(1)
		s := u.c.Status(t)
		var over atomic.Bool
		changed := make(chan struct{})
		go func() {
			defer close(changed)
			for !over.Load() {
				if op, err := o.Random(y, rnd); err != nil {
					y.Failed("%v: %v", op, err)
				}
			}
		}()
		t.Cleanup(func() { // of a test that fails: before the oracle is taken away
			over.Store(true)
			select {
			case <-changed:
			case <-time.After(10 * time.Second):
			}
		})
		g.kill(t, s.PID)
		begin := time.Now()
		g.start(t)
		restart := time.Since(begin)
		pause := u.pause(t)
		beyond = append(beyond, pause-restart)
		over.Store(true)
		<-changed
		o.ReadAll(y, "after the kill", 64, nil)
		d := u.c.Device(t, "data")
		t.Logf("pause %v, restart %v, %d bytes were cached, %d are", pause, restart, s.Cache.CachedBytes, d.CachedBytes)
		if d.CachedBytes < s.Cache.CachedBytes*9/10 {
			t.Errorf("%d bytes are cached, %d were before the kill", d.CachedBytes, s.Cache.CachedBytes)
		}
		if u.c.Stats(t).Devices["data"].HitBlocks == 0 {
			t.Error("nothing was a hit after the kill")
		}
	}
	u.end(t, y)
	notBeyondRestart(t, beyond)
}
