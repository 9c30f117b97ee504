//go:build vm

package vmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/ublk"
)

const (
	configPath = "/etc/ubcache.toml"
	runtimeDir = "/run/ubcache"
	stateDir   = "/var/lib/ubcache"
)

// CacheStatus is what tests read of `ubcache status --json`. The names of the fields are a promise
// to scripts, so they are written out here and not taken from the daemon.
type CacheStatus struct {
	Name    string `json:"name"`
	Running bool   `json:"running"`
	PID     int    `json:"pid"`
	SSD     string `json:"ssd"`
	Cache   struct {
		SizeBytes   int64 `json:"size_bytes"`
		CachedBytes int64 `json:"cached_bytes"`
		DirtyBytes  int64 `json:"dirty_bytes"`
		// SSDState is ok, slow or lost.
		SSDState string `json:"ssd_state"`
	} `json:"cache"`
	KernelAttributes string         `json:"kernel_attributes"`
	Devices          []DeviceStatus `json:"devices"`
}

// DeviceStatus is one cached device of a [CacheStatus].
type DeviceStatus struct {
	Name          string `json:"name"`
	Mode          string `json:"mode"`
	State         string `json:"state"`
	SizeBytes     int64  `json:"size_bytes"`
	CachedBytes   int64  `json:"cached_bytes"`
	DirtyBytes    int64  `json:"dirty_bytes"`
	DirtyMaxBytes int64  `json:"dirty_max_bytes"`
	PinnedBytes   int64  `json:"pinned_bytes"`
	BadBytes      int64  `json:"bad_bytes"`
	BackingDevice string `json:"backing_device"`
	Path          string `json:"path"`
	Service       string `json:"service"`
	CopyMode      string `json:"copy_mode"`
	SharedMemory  int    `json:"shared_memory"`
	Integrity     bool   `json:"integrity"`
	Presence      string `json:"presence"`
	Problem       string `json:"problem"`

	Ordered        string `json:"ordered"`
	UnsettledBytes int64  `json:"unsettled_bytes"`
	UnsettledMs    int64  `json:"unsettled_ms"`
}

// CacheStats is what tests read of `ubcache stats --json`.
type CacheStats struct {
	Cache struct {
		EvictedBlocks int64          `json:"evicted_blocks"`
		Attributes    AttributeStats `json:"attributes"`
	} `json:"cache"`
	Devices map[string]DeviceStats `json:"devices"`
}

// AttributeStats count what requests said of themselves.
type AttributeStats struct {
	ByAttribute map[string]struct {
		Seen    int64            `json:"seen"`
		Handled int64            `json:"handled"`
		Ignored int64            `json:"ignored"`
		Sources map[string]int64 `json:"sources"`
	} `json:"by_attribute"`
	ByHint     map[string]AttributeGroup `json:"by_hint"`
	ByPriority map[string]AttributeGroup `json:"by_priority"`
	ByTenant   map[string]AttributeGroup `json:"by_tenant"`
}

// AttributeGroup are the requests with one hint, priority or tenant.
type AttributeGroup struct {
	Requests int64 `json:"requests"`
	Bytes    int64 `json:"bytes"`
	P99Ns    int64 `json:"p99_ns"`
}

// DeviceStats are the counters of one cached device.
type DeviceStats struct {
	Reads             int64   `json:"reads"`
	Writes            int64   `json:"writes"`
	Flushes           int64   `json:"flushes"`
	Discards          int64   `json:"discards"`
	HitBlocks         int64   `json:"hit_blocks"`
	MissBlocks        int64   `json:"miss_blocks"`
	CachedWriteBlocks int64   `json:"cached_write_blocks"`
	WritebackBlocks   int64   `json:"writeback_blocks"`
	SettledBatches    int64   `json:"settled_batches"`
	HealedBlocks      int64   `json:"healed_blocks"`
	BadBlocks         int64   `json:"bad_blocks"`
	SSDErrors         int64   `json:"ssd_errors"`
	BackingErrors     int64   `json:"backing_errors"`
	HitRatio          float64 `json:"hit_ratio"`
}

// Cache is a cache named main, with its daemon, driven through the command line.
type Cache struct {
	SSD    string
	closed bool
}

// NewCache formats a device and starts the cache. At the end of the test the cache is stopped and
// the SSD checked, data included: each test has to leave it without a problem. A test that has
// failed prints what is known instead. Either way nothing is left for the next one.
func NewCache(t testing.TB, ssd string, format ...string) *Cache {
	t.Helper()
	nothing(t)
	Ubcache(t, append([]string{"format", ssd}, format...)...)
	setKernelAttributes(t, "off")
	return adopt(t, ssd)
}

// setKernelAttributes says whether the daemon loads its BPF program at its next start. A program that
// comes and goes makes the kernel patch its code, which emulated CPUs do not always survive, so
// only the tests that are about it have it.
func setKernelAttributes(t testing.TB, value string) {
	t.Helper()
	Sh(t, "sed -i -e '/^kernel-attributes/d' -e '/^\\[cache.main\\]/a kernel-attributes = \"'"+value+"'\"' "+
		configPath)
}

// ReopenCache is NewCache for a cache that was there before a reset of the machine.
func ReopenCache(t testing.TB, ssd string) *Cache {
	t.Helper()
	return adopt(t, ssd)
}

func adopt(t testing.TB, ssd string) *Cache {
	t.Helper()
	c := &Cache{SSD: ssd}
	t.Cleanup(func() { c.close(t) })
	c.Start(t)
	return c
}

// close ends the cache and checks it.
func (c *Cache) close(t testing.TB) {
	t.Helper()
	if c.closed {
		return
	}
	c.closed = true
	defer nothing(t)
	if t.Failed() {
		Diagnose(t.Output())
		return
	}
	c.Stop(t)
	c.Check(t)
}

// nothing takes away whatever a test has left: daemons, block devices, configuration.
func nothing(t testing.TB) {
	t.Helper()
	if _, err := os.Stat(configPath); err == nil {
		_, _ = Try(t, "ubcache", "stop", "--force")
	}
	locks, _ := filepath.Glob(runtimeDir + "/*.lock")
	for _, lock := range locks {
		_, _ = Try(t, "sh", "-c", "kill -9 $(cat "+lock+")")
	}
	removeBlockDevices(t)
	if err := errors.Join(os.RemoveAll(runtimeDir), os.RemoveAll(stateDir), os.RemoveAll("/dev/ubcache")); err != nil {
		t.Error(err)
	}
	if err := os.Remove(configPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// removeBlockDevices removes those that daemons have left.
func removeBlockDevices(t testing.TB) {
	t.Helper()
	list, err := ublk.List()
	if err != nil {
		t.Errorf("list ublk devices: %v", err)
	}
	for _, d := range list {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		if err := ublk.DeleteID(ctx, d.ID); err != nil && !errors.Is(err, ublk.ErrNotFound) {
			t.Errorf("delete what is left of ublk device %d: %v", d.ID, err)
		}
		cancel()
	}
}

// Start starts the daemon, or takes over from one that was killed.
func (c *Cache) Start(t testing.TB) {
	t.Helper()
	Ubcache(t, "start")
}

// Stop stops the daemon if there is one.
func (c *Cache) Stop(t testing.TB) {
	t.Helper()
	if c.running(t) {
		Ubcache(t, "stop")
	}
}

func (c *Cache) running(t testing.TB) bool {
	t.Helper()
	var list []CacheStatus
	decode(t, Ubcache(t, "status", "--json"), &list)
	return len(list) == 1 && list[0].Running
}

// Check checks the SSD of the stopped cache, every cached block included.
func (c *Cache) Check(t testing.TB) {
	t.Helper()
	Ubcache(t, "check", "--data", c.SSD)
}

// Attach puts the cache in front of a device and returns the cached device.
func (c *Cache) Attach(t testing.TB, dev, name string, flags ...string) string {
	t.Helper()
	// Before the backing device goes away, which the test may have made after the cache.
	t.Cleanup(func() { c.close(t) })
	Ubcache(t, append([]string{"attach", dev, "--name", name}, flags...)...)
	return c.Device(t, name).Path
}

// Set changes settings of a cached device.
func (c *Cache) Set(t testing.TB, name string, settings ...string) {
	t.Helper()
	Ubcache(t, append([]string{"set", name}, settings...)...)
}

// Status is the state of the running cache.
func (c *Cache) Status(t testing.TB) CacheStatus {
	t.Helper()
	var list []CacheStatus
	decode(t, Ubcache(t, "status", "--json"), &list)
	if len(list) != 1 || !list[0].Running {
		t.Fatalf("status shows %d caches, expected one that runs: %+v", len(list), list)
	}
	return list[0]
}

// Device is the state of a cached device.
func (c *Cache) Device(t testing.TB, name string) DeviceStatus {
	t.Helper()
	for _, d := range c.Status(t).Devices {
		if d.Name == name {
			return d
		}
	}
	t.Fatalf("status does not show %s", name)
	return DeviceStatus{}
}

// Stats are the counters since the last start.
func (c *Cache) Stats(t testing.TB) CacheStats {
	t.Helper()
	var list []CacheStats
	decode(t, Ubcache(t, "stats", "--json"), &list)
	if len(list) != 1 {
		t.Fatalf("stats shows %d caches, expected one", len(list))
	}
	return list[0]
}

// Attributes are the counters of attributes.
func (c *Cache) Attributes(t testing.TB) AttributeStats {
	t.Helper()
	return c.Stats(t).Cache.Attributes
}

// Kill ends the daemon as nothing else could: kill -9. It does not wait until the process is gone:
// that is for start to do.
func (c *Cache) Kill(t testing.TB) {
	t.Helper()
	pid := c.Status(t).PID
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatalf("kill daemon %d: %v", pid, err)
	}
}

// Refused runs a command that must be refused with this exit status and one line that has these
// words, in upper or lower case.
func Refused(t testing.TB, status int, words string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "ubcache", args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	what := "ubcache " + strings.Join(args, " ")
	if got := cmd.ProcessState.ExitCode(); got != status {
		t.Errorf("%s: exit status %d (%v), expected %d\n%s%s", what, got, err, status, &stdout, &stderr)
		return
	}
	line := stderr.String()
	if !strings.HasPrefix(line, "ubcache: ") || strings.Count(line, "\n") != 1 {
		t.Errorf("%s: expected one line, beginning with the program's name, not\n%s", what, line)
	}
	if !strings.Contains(strings.ToLower(line), strings.ToLower(words)) {
		t.Errorf("%s: expected %q in\n%s", what, words, line)
	}
	if stdout.Len() > 0 {
		t.Errorf("%s: refused, and yet says\n%s", what, &stdout)
	}
	t.Logf("%s", strings.TrimSpace(line))
}

func decode(t testing.TB, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}
