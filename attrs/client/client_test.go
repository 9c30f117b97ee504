package client

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/attrs/shm"
)

// Channel Direct is tested with the daemon, in internal/daemon.

const fileBytes = 1 << 20

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// makeFile makes a file below the working directory, where O_DIRECT is possible.
func makeFile(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(".", "test-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "file")
	must(t, os.WriteFile(path, bytes.Repeat([]byte("0123456789abcdef"), fileBytes/16), 0o600))
	return path
}

func open(t testing.TB, path string, o Options) *Device {
	t.Helper()
	d, err := Open(path, o)
	must(t, err)
	t.Cleanup(func() {
		if err := d.Close(); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
	return d
}

func bypass() *attrs.Set {
	var s attrs.Set
	s.SetHint(attrs.HintBypass)
	return &s
}

// TestPlain: without a cache the I/O is done and nothing is handled.
func TestPlain(t *testing.T) {
	path := makeFile(t)
	d := open(t, path, Options{Socket: filepath.Join(t.TempDir(), "none.direct")})
	if ch, why := d.Channel(); ch != Plain || why == "" {
		t.Fatalf("channel %s (%s)", ch, why)
	}
	exercise(t, d, path)
	b := make([]byte, 100)
	if n, _, err := d.ReadAt(b, 3, nil); n != 100 || err != nil || string(b[:13]) == "" {
		t.Errorf("an odd read: %d, %v", n, err)
	}
	if list, err := d.Query(); len(list) != 0 || err != nil {
		t.Errorf("query: %v, %v", list, err)
	}
}

// exercise does everything to a file that nobody answers for.
func exercise(t *testing.T, d *Device, path string) {
	t.Helper()
	if size, err := d.Size(); size != fileBytes || err != nil {
		t.Errorf("size %d, %v", size, err)
	}
	own, err := d.Alloc(8192)
	must(t, err)
	foreign := make([]byte, 8192)
	for i, b := range [][]byte{own, foreign} {
		off := int64(i) * 65536
		for j := range b {
			b[j] = byte(j * (i + 3))
		}
		want := bytes.Clone(b)
		n, res, err := d.WriteAt(b, off, bypass())
		if n != len(b) || err != nil || res.For(attrs.IDHint).Status != attrs.NotHandled {
			t.Errorf("write: %d, %v, hint %v", n, err, res.For(attrs.IDHint))
		}
		clear(b)
		n, res, err = d.ReadAt(b, off, bypass())
		if n != len(b) || err != nil || !bytes.Equal(b, want) ||
			res.For(attrs.IDHint).Status != attrs.NotHandled || len(res.Devices()) != 0 {
			t.Errorf("read: %d, %v, hint %v", n, err, res.For(attrs.IDHint))
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got[off:off+8192], want) {
			t.Errorf("the file has something else: %v", err)
		}
	}
	if n, _, err := d.ReadAt(own, fileBytes-4096, nil); n != 4096 || !errors.Is(err, io.EOF) {
		t.Errorf("a read across the end: %d, %v", n, err)
	}
	if _, _, err := d.ReadAt(nil, 0, nil); !errors.Is(err, unix.EINVAL) {
		t.Errorf("an empty read: %v", err)
	}
	if _, err := d.Flush(nil); err != nil {
		t.Error(err)
	}
	if _, err := d.Discard(65536, 4096, nil); err != nil {
		t.Error(err)
	}
	if _, _, err := d.ReadAt(own, 65536, nil); err != nil || !bytes.Equal(own[:4096], make([]byte, 4096)) {
		t.Errorf("a discarded page of a file is not zero: %v", err)
	}
	exerciseAsync(t, d)
}

func exerciseAsync(t *testing.T, d *Device) {
	t.Helper()
	ops := make([]Op, 20)
	for round := range 3 {
		for i := range ops {
			if ops[i].Buf == nil {
				b, err := d.Alloc(4096)
				must(t, err)
				ops[i] = Op{Buf: b, Off: int64(i) * 4096, Attrs: bypass(), FUA: true}
			}
			ops[i].Kind = Kind(round % 2)
			if round == 0 {
				ops[i].Kind = Write
				for j := range ops[i].Buf {
					ops[i].Buf[j] = byte(i)
				}
			}
			must(t, d.Submit(&ops[i]))
		}
		for i := range ops {
			if err := ops[i].Wait(); err != nil || ops[i].N != 4096 || ops[i].Buf[77] != byte(i) {
				t.Errorf("round %d, request %d: %d, %v", round, i, ops[i].N, err)
			}
		}
	}
	for i := range ops {
		d.Free(ops[i].Buf)
	}
	if err := ops[0].Wait(); err == nil {
		t.Error("a request that is not submitted was waited for")
	}
}

// TestPlainRequired: what nobody will handle is refused before any effect.
func TestPlainRequired(t *testing.T) {
	path := makeFile(t)
	before, err := os.ReadFile(path)
	must(t, err)
	d := open(t, path, Options{Channel: Plain})
	s := bypass()
	s.Require(attrs.IDHint)
	b := make([]byte, 4096)
	if n, _, err := d.WriteAt(b, 0, s); n != 0 || !errors.Is(err, attrs.ErrnoRefused) {
		t.Errorf("write: %d, %v", n, err)
	}
	if _, err := d.Discard(0, 4096, s); !errors.Is(err, attrs.ErrnoRefused) {
		t.Errorf("discard: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file has changed: %v", err)
	}
}

// fake is a daemon that registers memory with what it says are block devices.
func fake(t testing.TB, devices []string) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "fake"+shm.SocketSuffix)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	must(t, err)
	var serving sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	serving.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			serving.Go(func() { serveFake(t, c, devices) })
		}
	})
	return socket
}

func serveFake(t testing.TB, c *net.UnixConn, devices []string) {
	defer c.Close()
	for {
		var m shm.Message
		fds, err := m.Receive(c)
		if err != nil {
			return
		}
		answer := shm.Message{Kind: m.Kind, Index: m.Index}
		switch m.Kind {
		case shm.Hello:
			v, err := shm.Open(fds[0], 1<<30)
			if err != nil {
				t.Error(err)
			} else {
				_ = v.Close()
			}
		case shm.List:
			if int(m.Index) >= len(devices) {
				answer.Errno = unix.ENOENT
			} else {
				answer.Text = devices[m.Index]
			}
		case shm.OpenDevice:
			answer.Text, answer.Flags = m.Text, m.Flags&shm.FlagRegister
			answer.Index = uint32(slices.Index(devices, m.Text))
		case shm.Query:
			answer.Text = string(shm.AppendCapabilities(nil, []shm.Capability{{ID: 1, Supported: true}}))
		}
		shm.CloseAll(fds)
		if answer.Send(c) != nil {
			return
		}
	}
}

// TestShared: the memory is registered, and the file is on no such device: nothing is handled.
func TestShared(t *testing.T) {
	path := makeFile(t)
	d := open(t, path, Options{Socket: fake(t, []string{"a", "b"})})
	ch, why := d.Channel()
	if ch != Shared || !strings.Contains(why, "2 block devices") {
		t.Fatalf("channel %s (%s)", ch, why)
	}
	if flags, err := unix.FcntlInt(uintptr(d.fd), unix.F_GETFL, 0); err != nil ||
		flags&unix.O_DIRECT == 0 {
		t.Errorf("flags %#x without O_DIRECT: %v", flags, err)
	}
	exercise(t, d, path)
	list, err := d.Query()
	if err != nil || len(list) != 1 || list[0] != (Support{attrs.IDHint, true}) {
		t.Errorf("query: %v, %v", list, err)
	}
	// Two requests with attributes must not share a page.
	b, err := d.Alloc(4096)
	must(t, err)
	if !d.lockPages(0, 4096) {
		t.Fatal("the first page is taken")
	}
	if _, _, err := d.ReadAt(d.region.Data()[512:1024], 0, bypass()); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a page that another request has: %v", err)
	}
	d.unlockPages(0, 4096)
	d.Free(b)
}

func TestOpenErrors(t *testing.T) {
	path := makeFile(t)
	none := filepath.Join(t.TempDir(), "none.direct")
	for _, c := range []struct {
		path string
		o    Options
		want error
	}{
		{"", Options{}, nil},
		{path + "x", Options{}, unix.ENOENT},
		{"/dev/null", Options{}, nil},
		{path, Options{Channel: Shared, Socket: none}, ErrChannel},
		{path, Options{Channel: Direct, Socket: none}, ErrChannel},
		{path, Options{Channel: Direct, Socket: fake(t, []string{"a"})}, ErrChannel},
		{path, Options{Channel: Shared, Socket: fake(t, nil)}, ErrChannel},
		{"", Options{Device: "a", Socket: none}, unix.ENOENT},
		{path, Options{Device: "a"}, nil},
	} {
		d, err := Open(c.path, c.o)
		if err == nil {
			_ = d.Close()
		}
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%q %+v: %v, want %v", c.path, c.o, err, c.want)
		}
	}
}

func TestClosed(t *testing.T) {
	d := open(t, makeFile(t), Options{Channel: Plain})
	must(t, d.Close())
	if _, _, err := d.ReadAt(make([]byte, 512), 0, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("read: %v", err)
	}
	if err := d.Submit(&Op{}); !errors.Is(err, ErrClosed) {
		t.Errorf("submit: %v", err)
	}
	if err := d.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("close: %v", err)
	}
}

// TestMemory compares the allocator with a table of pages.
func TestMemory(t *testing.T) {
	const pages = 200
	var m memory
	m.init(pages)
	rng := rand.New(rand.NewPCG(1, 1))
	var owner [pages]int
	held := map[int]int{}
	for i := 1; i < 20000; i++ {
		if n := 1 + rng.IntN(20); rng.IntN(2) == 0 {
			page, ok := m.get(n)
			if !ok {
				run := 0
				for _, o := range owner {
					if run++; o != 0 {
						run = 0
					}
					if run == n {
						t.Fatalf("no %d pages, and there are: %v", n, owner)
					}
				}
				continue
			}
			for p := page; p < page+n; p++ {
				if owner[p] != 0 {
					t.Fatalf("page %d given out twice", p)
				}
				owner[p] = i
			}
			held[page] = n
			continue
		}
		for page, n := range held {
			if !m.put(page) || m.put(page) {
				t.Fatal("a buffer is given back once and not twice")
			}
			clear(owner[page : page+n])
			delete(held, page)
			break
		}
	}
	for page := range held {
		m.put(page)
	}
	if len(m.free) != 1 || m.free[0] != (extent{0, pages}) {
		t.Errorf("free in the end: %v", m.free)
	}
}
