package daemon

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	api "ubcache/attrs/client"
	"ubcache/attrs/shm"
	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/missed"
)

// These tests run a whole daemon, without ublk, on image files, and clients of its direct channel.

type directOptions struct {
	noChecksums bool
	mode        string
	direct      DirectOptions
	alive       func(*blockdev.Device) error
	ssdDir      string // of the SSD's file, if not the bench's
	inMemory    bool   // see memoryDir
}

// directBench is a running cache with backing devices disk0 and disk1.
type directBench struct {
	*Instance
	t   testing.TB
	dir string
}

const directDiskBytes = 64 << 20

func newDirectBench(t testing.TB, o directOptions) *directBench {
	t.Helper()
	dir := ""
	if o.inMemory {
		dir = memoryDir(t)
	} else {
		dir = t.TempDir()
	}
	t.Setenv(control.EnvRuntimeDir, filepath.Join(dir, "run"))
	t.Setenv(missed.EnvStateDir, filepath.Join(dir, "state"))
	if o.ssdDir == "" {
		o.ssdDir = dir
	}
	ssd := makeImage(t, filepath.Join(o.ssdDir, "ssd"), 256<<20)
	i, err := blockdev.Inspect(ssd)
	must(t, err)
	dev, err := i.Open(context.Background())
	must(t, err)
	sb, err := cache.Format(dev, cache.FormatOptions{NoChecksums: o.noChecksums})
	must(t, err)
	must(t, dev.Close())
	conf := filepath.Join(dir, "ubcache.toml")
	must(t, config.Edit(conf, func(f *config.File) error {
		f.Caches = map[string]*config.Cache{"fast": {UUID: sb.UUID.String(), Device: ssd}}
		return nil
	}))
	in, err := Start(context.Background(), Options{
		Name: "fast", ConfigPath: conf, AnyRuntimeDir: true, NoUblk: true, Direct: o.direct,
		alive: o.alive,
	})
	must(t, err)
	b := &directBench{Instance: in, t: t, dir: dir}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := b.Stop(ctx, true); err != nil {
			t.Error(err)
		}
	})
	if o.mode == "" {
		o.mode = "writeback"
	}
	for _, name := range []string{"disk0", "disk1"} {
		_, err := in.attach(context.Background(), control.AttachArgs{
			Name: name, Device: makeImage(t, filepath.Join(dir, name), directDiskBytes), UblkID: -1,
			Settings: map[string]string{"mode": o.mode, "sequential-cutoff": "0"},
		}, nil)
		must(t, err)
	}
	return b
}

func makeImage(t testing.TB, path string, size int64) string {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	must(t, f.Truncate(size))
	must(t, f.Close())
	return path
}

func (b *directBench) open(o api.Options) *api.Device {
	b.t.Helper()
	if o.Device == "" {
		o.Device = "disk0"
	}
	o.Socket = b.directPath()
	d, err := api.Open("", o)
	must(b.t, err)
	return d
}

func closeDevice(t testing.TB, d *api.Device) {
	t.Helper()
	must(t, d.Close())
}

// TestDirect reads and writes with every attribute there is.
func TestDirect(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	d := b.open(api.Options{})
	defer closeDevice(t, d)
	if ch, why := d.Channel(); ch != api.Direct {
		t.Fatalf("channel %s (%s)", ch, why)
	}
	if size, err := d.Size(); err != nil || size != directDiskBytes {
		t.Fatalf("size %d, %v", size, err)
	}
	s, err := b.find("disk0")
	must(t, err)
	buf, err := d.Alloc(64 << 10)
	must(t, err)
	fill(buf, 1)
	var set attrs.Set
	set.SetHint(attrs.HintCache)
	set.SetTrace(7)
	n, res, err := d.WriteAt(buf, 128<<10, &set)
	if n != len(buf) || err != nil {
		t.Fatal(n, err)
	}
	if a := res.For(attrs.IDHint); a.Status != attrs.Handled || a.Source != attrs.SourceExplicit {
		t.Errorf("hint is %+v", a)
	}
	if l := res.Devices(); len(l) != 1 || uint32(l[0]) != s.b.Number() || res.Blocks != 16 {
		t.Errorf("devices %v, %d blocks", l, res.Blocks)
	}
	got, err := d.Alloc(64 << 10)
	must(t, err)
	n, res, err = d.ReadAt(got, 128<<10, &set)
	if n != len(got) || err != nil || !bytes.Equal(got, buf) {
		t.Fatal("read something else: ", n, err)
	}
	if res.Origin != attrs.OriginSSD {
		t.Errorf("a hit came from %s", res.Origin)
	}
	plain := make([]byte, 4096) // of no region
	if n, _, err = d.ReadAt(plain, 128<<10, nil); n != 4096 || err != nil ||
		!bytes.Equal(plain, buf[:4096]) {
		t.Fatal("read something else: ", n, err)
	}
	if res, err = d.Flush(&set); err != nil || len(res.Devices()) != 1 {
		t.Errorf("flush: %v, answered by %v", err, res.Devices())
	}
	if res, err = d.Discard(128<<10, 4096, &set); err != nil || len(res.Devices()) != 1 {
		t.Errorf("discard: %v, answered by %v", err, res.Devices())
	}
	z := api.Op{Kind: api.WriteZeroes, Off: 132 << 10, Len: 4096}
	must(t, d.Submit(&z))
	must(t, z.Wait())
	if _, _, err = d.ReadAt(plain, 132<<10, nil); err != nil || !bytes.Equal(plain, make([]byte, 4096)) {
		t.Errorf("zeroes were not written: %v", err)
	}
}

func fill(b []byte, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i+8 <= len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
}

// TestDirectErrors: what a request fails with.
func TestDirectErrors(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	d := b.open(api.Options{Bytes: 1 << 20})
	defer closeDevice(t, d)
	buf, err := d.Alloc(8192)
	must(t, err)
	private := privateSet(t)
	for _, c := range []struct {
		name string
		do   func() error
		want error
	}{
		{"beyond the end", func() error {
			_, _, err := d.ReadAt(buf, directDiskBytes, nil)
			return err
		}, unix.EINVAL},
		{"negative", func() error { _, _, err := d.WriteAt(buf, -4096, nil); return err }, unix.EINVAL},
		{"no sectors", func() error { _, _, err := d.WriteAt(buf[:100], 0, nil); return err }, unix.EINVAL},
		{"empty", func() error { _, _, err := d.ReadAt(nil, 0, nil); return err }, unix.EINVAL},
		{"required", func() error {
			_, res, err := d.WriteAt(buf, 0, private)
			if a := res.For(62000); a.Status != attrs.Unsupported {
				t.Errorf("private attribute is %v", a)
			}
			return err
		}, attrs.ErrnoRefused},
		{"required, of a flush", func() error { _, err := d.Flush(private); return err }, attrs.ErrnoRefused},
		{"too large", func() error {
			_, _, err := d.ReadAt(make([]byte, 2<<20), 0, nil)
			return err
		}, api.ErrMemory},
	} {
		if err := c.do(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := api.Open("", api.Options{Socket: b.directPath(), Device: "none"}); !errors.Is(
		err, unix.ENOENT) {
		t.Errorf("a device that is not there: %v", err)
	}
}

// privateSet has a required attribute that nobody knows.
func privateSet(t testing.TB) *attrs.Set {
	t.Helper()
	b := append([]byte("UBAS\x01\x01\x01\x00"), 24, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, 0x30, 0xf2, 1, 0, 0, 0, 0, 0) // 62000, required, no value
	var s attrs.Set
	must(t, s.Decode(b))
	return &s
}

// TestDirectQuery: what the device says it acts on is what it acts on, and nothing else.
func TestDirectQuery(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	d := b.open(api.Options{})
	defer closeDevice(t, d)
	list, err := d.Query()
	must(t, err)
	if len(list) != len(attrs.Attributes()) {
		t.Fatalf("%d attributes known, of %d", len(list), len(attrs.Attributes()))
	}
	buf, err := d.Alloc(4096)
	must(t, err)
	for _, s := range list {
		var set attrs.Set
		switch s.ID {
		case attrs.IDHint:
			set.SetHint(attrs.HintCache)
		case attrs.IDMode:
			set.SetMode(attrs.Writethrough)
		case attrs.IDPriority:
			set.SetPriority(attrs.Priority{Class: attrs.ClassBE, Level: 2})
		case attrs.IDChecksum:
			set.SetChecksum(attrs.Checksum{Algorithm: attrs.XXH64, Return: true})
		case attrs.IDLifetime:
			set.SetLifetime(attrs.LifetimeShort)
		case attrs.IDTenant:
			set.SetTenant(attrs.Tenant{ID: 1})
		case attrs.IDDeadline:
			set.SetDeadline(time.Minute)
		case attrs.IDTiming:
			set.SetTiming()
		case attrs.IDTrace:
			set.SetTrace(1)
		}
		_, res, err := d.WriteAt(buf, 0, &set)
		must(t, err)
		if got := res.For(s.ID).Status == attrs.Handled; got != s.Supported {
			t.Errorf("%v: said to be supported: %t; is %v (see capability.go)", s.ID, s.Supported,
				res.For(s.ID).Status)
		}
	}
}

// TestDirectClients has several clients with many requests each, and compares all data.
func TestDirectClients(t *testing.T) {
	for _, o := range []directOptions{
		{},
		{noChecksums: true},
		{mode: "writethrough"},
		{direct: DirectOptions{Depth: 3}},
	} {
		b := newDirectBench(t, o)
		var all sync.WaitGroup
		const clients = 4
		for i := range clients {
			all.Go(func() {
				d := b.open(api.Options{Device: []string{"disk0", "disk1"}[i%2], Depth: 16})
				defer closeDevice(t, d)
				const part = directDiskBytes / clients
				exerciseDirect(t, d, int64(i)*part, part, uint64(i))
			})
		}
		all.Wait()
	}
}

// exerciseDirect keeps requests under way on a part of a device, of which it knows what is there.
func exerciseDirect(t *testing.T, d *api.Device, base, size int64, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 2))
	const most = 3 << 19 // more than an entry moves
	model := make([]byte, size)
	ops := make([]api.Op, 8)
	for round := range 40 {
		// Each takes a part of its own, so that the order does not matter.
		share := size / int64(len(ops))
		for i := range ops {
			op := &ops[i]
			n := 512 * (1 + rng.Int64N(most/512))
			if rng.IntN(2) == 0 {
				n = 512 * (1 + rng.Int64N(32))
			}
			off := int64(i)*share + 512*rng.Int64N((share-n)/512+1)
			buf, err := d.Alloc(int(n))
			if err != nil {
				t.Error(err)
				return
			}
			var set attrs.Set
			set.SetHint([]attrs.Hint{attrs.HintDefault, attrs.HintCache, attrs.HintBypass}[rng.IntN(3)])
			*op = api.Op{Kind: api.Kind(rng.IntN(2)), Buf: buf, Off: base + off, Attrs: &set}
			if rng.IntN(3) == 0 {
				op.Attrs = nil
			}
			if op.Kind == api.Write {
				fill(buf, rng.Uint64())
				copy(model[off:], buf)
			}
			if err := d.Submit(op); err != nil {
				t.Error(err)
				return
			}
		}
		for i := range ops {
			op := &ops[i]
			err := op.Wait()
			off := op.Off - base
			switch {
			case err != nil || op.N != len(op.Buf):
				t.Errorf("round %d: %d bytes at %d: %d, %v", round, len(op.Buf), op.Off, op.N, err)
				return
			case op.Kind == api.Read && !bytes.Equal(op.Buf, model[off:off+int64(op.N)]):
				t.Errorf("round %d: %d bytes at %d read as something else", round, op.N, op.Off)
				return
			case op.Attrs != nil && len(op.Results.Devices()) != 1:
				t.Errorf("round %d: answered by %v", round, op.Results.Devices())
				return
			case op.Attrs != nil && op.Results.For(attrs.IDHint).Status == attrs.NotHandled:
				t.Errorf("round %d: %d bytes at %d: hint not handled", round, len(op.Buf), op.Off)
			}
			d.Free(op.Buf)
		}
	}
}

// connectRaw is a client that speaks the protocol by itself.
func (b *directBench) connectRaw(r *shm.Region, flags uint32) (*net.UnixConn, shm.Message, []int) {
	b.t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: b.directPath(), Net: "unixpacket"})
	must(b.t, err)
	b.t.Cleanup(func() { _ = c.Close() })
	m := shm.Message{Kind: shm.Hello, Flags: flags}
	_ = m.Send(c, r.FD()) // a refusal may come first
	var reply shm.Message
	fds, err := reply.Receive(c)
	must(b.t, err)
	b.t.Cleanup(func() { shm.CloseAll(fds) })
	return c, reply, fds
}

func newRegion(t testing.TB, o shm.Options) *shm.Region {
	t.Helper()
	r, err := shm.Create(o)
	must(t, err)
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func askRaw(t testing.TB, c *net.UnixConn, m shm.Message, fds ...int) shm.Message {
	t.Helper()
	must(t, m.Send(c, fds...))
	var reply shm.Message
	got, err := reply.Receive(c)
	must(t, err)
	shm.CloseAll(got)
	return reply
}

// clients waits until there are so many.
func (b *directBench) clients(want int) {
	b.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		d := b.directServer()
		d.mu.Lock()
		n := len(d.mu.clients)
		d.mu.Unlock()
		if n == want {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("%d clients, want %d", n, want)
		}
	}
}

// TestDirectRefused: who and what is not let in.
func TestDirectRefused(t *testing.T) {
	b := newDirectBench(t, directOptions{direct: DirectOptions{Clients: 2, Bytes: 1 << 20}})
	good := newRegion(t, shm.Options{Bytes: 1 << 20, Entries: 8})
	refused := func(name string, r *shm.Region, flags uint32, want unix.Errno) {
		t.Helper()
		_, m, _ := b.connectRaw(r, flags)
		if m.Errno != want || m.Text == "" {
			t.Errorf("%s: %v (%s), want %v", name, m.Errno, m.Text, want)
		}
		b.clients(0)
	}
	refused("too large", newRegion(t, shm.Options{Bytes: 2 << 20}), 0, unix.EINVAL)
	refused("unknown flags", good, 1<<30, unix.EINVAL)
	refused("no ring", newRegion(t, shm.Options{Bytes: 1 << 20}), shm.FlagRing, unix.EINVAL)

	c, m, _ := b.connectRaw(good, shm.FlagRing)
	must(t, m.Err())
	null, err := unix.Open("/dev/null", unix.O_RDWR, 0)
	must(t, err)
	defer unix.Close(null)
	for _, q := range []struct {
		m    shm.Message
		fds  []int
		want unix.Errno
	}{
		{shm.Message{Kind: shm.OpenDevice}, nil, unix.EINVAL},
		{shm.Message{Kind: shm.OpenDevice}, []int{null}, unix.ENOTBLK},
		{shm.Message{Kind: shm.OpenDevice, Text: "none"}, nil, unix.ENOENT},
		{shm.Message{Kind: shm.List, Index: 2}, nil, unix.ENOENT},
		{shm.Message{Kind: shm.Query, Index: 0}, nil, unix.EBADF},
		{shm.Message{Kind: shm.Hello}, nil, unix.EPROTO},
		{shm.Message{Kind: 99}, nil, unix.EPROTO},
		{shm.Message{Kind: shm.List, Flags: 1 << 31}, nil, unix.EINVAL},
		{shm.Message{Kind: shm.OpenDevice, Flags: 1, Text: "disk0"}, nil, unix.EINVAL},
	} {
		if got := askRaw(t, c, q.m, q.fds...); got.Errno != q.want {
			t.Errorf("%+v: %v, want %v", q.m, got.Errno, q.want)
		}
	}
	if m := askRaw(t, c, shm.Message{Kind: shm.List, Index: 1}); m.Text != "disk1" || m.Err() != nil {
		t.Errorf("list: %+v", m)
	}
	b.connectRaw(good, 0)
	_, m, _ = b.connectRaw(good, 0)
	if m.Errno != unix.EUSERS {
		t.Errorf("a third client of two: %v", m.Err())
	}
}

const envChild = "UBCACHE_TEST_CHILD"

// TestDirectChild is the process that TestDirectKilled kills.
func TestDirectChild(t *testing.T) {
	socket := os.Getenv(envChild)
	if socket == "" {
		return
	}
	d, err := api.Open("", api.Options{Socket: socket, Device: "disk0"})
	must(t, err)
	ops := make([]api.Op, 8)
	var set attrs.Set
	set.SetHint(attrs.HintCache)
	for i := range ops {
		buf, err := d.Alloc(1 << 20)
		must(t, err)
		ops[i] = api.Op{Kind: api.Write, Buf: buf, Off: int64(i) << 20, Attrs: &set}
		must(t, d.Submit(&ops[i]))
	}
	_, _ = os.Stdout.WriteString("busy\n")
	for i := 0; ; i = (i + 1) % len(ops) {
		must(t, ops[i].Wait())
		must(t, d.Submit(&ops[i]))
	}
}

// TestDirectKilled kills clients in the midst of their requests. All that they had is given back, and
// others are served as before.
func TestDirectKilled(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	other := b.open(api.Options{Device: "disk1"})
	defer closeDevice(t, other)
	buf, err := other.Alloc(4096)
	must(t, err)
	fds, maps := countFDs(t), countMappings(t)
	for range 5 {
		child := exec.Command(os.Args[0], "-test.run=^TestDirectChild$")
		child.Env = append(os.Environ(), envChild+"="+b.directPath())
		out, err := child.StdoutPipe()
		must(t, err)
		must(t, child.Start())
		line := make([]byte, 5)
		if _, err := out.Read(line); err != nil || string(line) != "busy\n" {
			t.Fatalf("the child says %q, %v", line, err)
		}
		must(t, child.Process.Kill())
		_ = child.Wait()
		b.clients(1)
		if _, _, err := other.WriteAt(buf, 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := countFDs(t); n > fds {
		t.Errorf("%d descriptors before, %d after", fds, n)
	}
	d := b.directServer()
	must(t, d.loop.do(func() error {
		for _, n := range d.ring.busy {
			if n != 0 {
				t.Error("requests of dead clients are still in service")
			}
		}
		if n := len(d.ring.bufs.small.free) + len(d.ring.bufs.large.free); n != directSmalls+directLarges {
			t.Errorf("%d buffers of %d came back", n, directSmalls+directLarges)
		}
		return nil
	}))
	if n := countMappings(t); n > maps {
		t.Errorf("memory of dead clients is still mapped: %d mappings before, %d after", maps, n)
	}
}

// countMappings counts the mappings of memory that clients share.
func countMappings(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/maps")
	must(t, err)
	n := strings.Count(string(text), "ubcache")
	if n == 0 {
		t.Fatal("no memory of clients is mapped")
	}
	return n
}

func countFDs(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

// TestDirectDetach detaches a device that clients have open: not without force; and stops the cache.
func TestDirectDetach(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	d := b.open(api.Options{})
	defer closeDevice(t, d)
	buf, err := d.Alloc(4096)
	must(t, err)
	_, _, err = d.WriteAt(buf, 0, nil)
	must(t, err)
	progress := func(control.Progress) {}
	args := control.DetachArgs{Name: "disk0"}
	if _, err := b.detach(context.Background(), args, progress); err == nil ||
		!strings.Contains(err.Error(), "has it open") {
		t.Fatalf("a device that is open was detached: %v", err)
	}
	if err := b.Stop(context.Background(), false); err == nil ||
		!strings.Contains(err.Error(), "has it open") {
		t.Fatalf("a cache with a device that is open was stopped: %v", err)
	}
	must(t, b.directServer().drop(1))
	if _, _, err := d.ReadAt(buf, 0, nil); !errors.Is(err, unix.ENODEV) {
		t.Errorf("a read of a device that is gone: %v", err)
	}
	if _, err := api.Open("", api.Options{Socket: b.directPath(), Device: "disk0"}); !errors.Is(
		err, unix.ENODEV) {
		t.Errorf("open of a device that is gone: %v", err)
	}
}

// TestDirectRestart: clients go on when another daemon takes over, also those in the midst of a request.
func TestDirectRestart(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	d := b.open(api.Options{})
	defer closeDevice(t, d)
	var set attrs.Set
	set.SetHint(attrs.HintCache)
	stop, over := make(chan struct{}), make(chan struct{})
	var rounds atomic.Int64
	go func() {
		defer close(over)
		buf, want := make([]byte, 8192), make([]byte, 8192)
		for ; ; rounds.Add(1) {
			n := rounds.Load()
			select {
			case <-stop:
				return
			default:
			}
			fill(want, uint64(n))
			_, res, err := d.WriteAt(want, n%100*8192, &set)
			if err != nil || res.For(attrs.IDHint).Status != attrs.Handled {
				t.Errorf("write %d: %v, hint %+v", n, err, res.For(attrs.IDHint))
				return
			}
			if _, _, err := d.ReadAt(buf, n%100*8192, nil); err != nil || !bytes.Equal(buf, want) {
				t.Errorf("read %d: %v", n, err)
				return
			}
		}
	}()
	for range 3 {
		awaitRounds(t, &rounds, rounds.Load()+4, over)
		b.restart()
	}
	close(stop)
	<-over
	if n := rounds.Load(); n < 10 {
		t.Errorf("only %d rounds", n)
	}
	// Requests that nobody waited for fail, and the next go on.
	buf, err := d.Alloc(4096)
	must(t, err)
	b.restart()
	op := api.Op{Kind: api.Read, Buf: buf}
	for tries := 0; ; tries++ {
		must(t, d.Submit(&op))
		err := op.Wait()
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EIO) || tries == 10 {
			t.Fatal(err)
		}
	}
}

// awaitRounds waits until there were so many rounds, however slow the machine is.
func awaitRounds(t *testing.T, rounds *atomic.Int64, want int64, over <-chan struct{}) {
	t.Helper()
	for end := time.Now().Add(time.Minute); rounds.Load() < want; {
		select {
		case <-over:
			t.FailNow() // it said why
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(end) {
			t.Fatalf("%d rounds after a minute, want %d", rounds.Load(), want)
		}
	}
}
