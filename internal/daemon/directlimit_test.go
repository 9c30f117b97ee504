package daemon

import (
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	api "ubcache/attrs/client"
	"ubcache/attrs/rules"
	"ubcache/attrs/shm"
)

// onRing runs f on the thread of the rings' loop, with the first client's ring.
func (b *directBench) onRing(f func(d *directRing, r *ringClient)) {
	b.t.Helper()
	d := b.directServer()
	must(b.t, d.loop.do(func() error {
		for _, r := range d.ring.clients {
			if r != nil {
				f(&d.ring, r)
				return nil
			}
		}
		return errors.New("no client has a ring")
	}))
}

// TestDirectDepth: a client has no more requests in service than it may, and all are done.
func TestDirectDepth(t *testing.T) {
	const depth = 3
	b := newDirectBench(t, directOptions{mode: "none", direct: DirectOptions{Depth: depth}})
	d := b.open(api.Options{Depth: 64})
	defer closeDevice(t, d)
	ops := make([]api.Op, 64)
	for i := range ops {
		buf, err := d.Alloc(4096)
		must(t, err)
		ops[i] = api.Op{Kind: api.Write, Buf: buf, Off: int64(i) << 16}
	}
	most := 0
	for range 200 {
		for i := range ops {
			must(t, d.Submit(&ops[i]))
		}
		b.onRing(func(_ *directRing, r *ringClient) { most = max(most, r.busy) })
		for i := range ops {
			must(t, ops[i].Wait())
		}
		if most > depth {
			t.Fatalf("%d requests in service, %d are allowed", most, depth)
		}
	}
	if most == 0 {
		t.Error("no request was ever seen in service")
	}
}

// TestDirectBuffers: when no buffer is left a client waits for one, and others with it, and all go on.
func TestDirectBuffers(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	d := b.open(api.Options{})
	defer closeDevice(t, d)
	buf, err := d.Alloc(1 << 20)
	must(t, err)
	_, _, err = d.WriteAt(buf, 0, nil)
	must(t, err)
	var kept [][]byte
	b.onRing(func(r *directRing, _ *ringClient) {
		for range directLarges {
			kept = append(kept, r.bufs.get(maxDirect))
		}
	})
	op := api.Op{Kind: api.Read, Buf: buf}
	must(t, d.Submit(&op))
	small := make([]byte, 4096)
	other := b.open(api.Options{Device: "disk1"})
	defer closeDevice(t, other)
	if _, _, err := other.ReadAt(small, 0, nil); err != nil { // a small buffer is left
		t.Fatal(err)
	}
	b.onRing(func(_ *directRing, r *ringClient) {
		if r.wait == nil || r.busy != 0 {
			t.Error("a request without a buffer does not wait")
		}
	})
	b.onRing(func(r *directRing, _ *ringClient) {
		for _, k := range kept {
			r.bufs.put(k)
		}
	})
	must(t, op.Wait())
}

// TestDirectReadOnly: a client may do what it could do with the block device.
func TestDirectReadOnly(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	d := b.open(api.Options{})
	defer closeDevice(t, d)
	buf, err := d.Alloc(4096)
	must(t, err)
	for _, c := range []struct {
		read, write bool
	}{{true, false}, {false, true}} {
		b.onRing(func(_ *directRing, r *ringClient) {
			r.opened[0].read, r.opened[0].write = c.read, c.write
		})
		_, _, rerr := d.ReadAt(buf, 0, nil)
		_, _, werr := d.WriteAt(buf, 0, nil)
		_, derr := d.Discard(0, 4096, nil)
		zeroes := api.Op{Kind: api.WriteZeroes, Len: 4096}
		must(t, d.Submit(&zeroes))
		for _, err := range []error{werr, derr, zeroes.Wait()} {
			if errors.Is(err, unix.EBADF) == c.write {
				t.Errorf("writing with %+v: %v", c, err)
			}
		}
		if errors.Is(rerr, unix.EBADF) == c.read {
			t.Errorf("reading with %+v: %v", c, rerr)
		}
	}
}

// TestDirectUsers: what is not for every user.
func TestDirectUsers(t *testing.T) {
	b := newDirectBench(t, directOptions{direct: DirectOptions{PerUser: 2, Clients: 5}})
	d := b.directServer()
	user := func(uid uint32) *directClient {
		return &directClient{d: d, cred: unix.Ucred{Uid: uid}}
	}
	const ann, ben = 54321, 54322
	for i, c := range []struct {
		uid  uint32
		want error
	}{
		{ann, nil}, {ann, nil}, {ann, unix.EUSERS}, {ben, nil}, {0, nil}, {0, nil}, {0, unix.EUSERS},
	} {
		client := user(c.uid)
		if err := d.admit(client); !errors.Is(err, c.want) {
			t.Errorf("client %d, of user %d: %v, want %v", i, c.uid, err, c.want)
		} else if err == nil {
			defer d.leave(client)
		}
	}
	m := &shm.Message{Kind: shm.OpenDevice, Text: "disk0"}
	if _, err := user(ann).find(m, nil); !errors.Is(err, unix.EACCES) {
		t.Errorf("a user opens a device by name: %v", err)
	}
	if o, err := user(0).find(m, nil); err != nil || !o.read || !o.write {
		t.Errorf("root opens a device by name: %+v, %v", o, err)
	}
}

// TestDirectRules: rules apply to requests of the ring, and what the client says beats them.
func TestDirectRules(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	d := b.open(api.Options{})
	defer closeDevice(t, d)
	var said attrs.Set
	said.SetHint(attrs.HintBypass)
	table, err := rules.Compile([]rules.Rule{{Set: said}})
	must(t, err)
	s, err := b.find("disk0")
	must(t, err)
	s.rules.table.Store(table)
	buf, err := d.Alloc(4096)
	must(t, err)
	var trace, hint attrs.Set
	trace.SetTrace(1)
	hint.SetHint(attrs.HintCache)
	for _, c := range []struct {
		set  *attrs.Set
		want attrs.Source
	}{{&trace, attrs.SourceRule}, {&hint, attrs.SourceExplicit}} {
		_, res, err := d.WriteAt(buf, 0, c.set)
		must(t, err)
		if a := res.For(attrs.IDHint); a.Status != attrs.Handled || a.Source != c.want {
			t.Errorf("hint is %+v, want from %v", a, c.want)
		}
	}
	if _, _, err := d.WriteAt(buf, 0, nil); err != nil {
		t.Error(err)
	}
}

// ringTrip is one request of a raw client, waited for without sleeping.
func ringTrip(h *hostileClient, e *shm.Entry) int64 {
	g := h.r.Ring()
	if _, wake := g.Submit(e); wake {
		_, _ = unix.Write(h.fds[0], wakeWord)
	}
	var c shm.Completion
	for !g.Next(&c) {
		runtime.Gosched()
	}
	return c.Result
}

var wakeWord = []byte{1, 0, 0, 0, 0, 0, 0, 0}

// TestDirectAllocations: the daemon allocates nothing for a request. As many are under way as the ring has entries, as each
// round waits for the daemon's thread, which on a busy machine takes a while.
func TestDirectAllocations(t *testing.T) {
	b := newDirectBench(t, directOptions{inMemory: true})
	h := newHostile(t, b)
	defer h.close()
	var set attrs.Set
	set.SetHint(attrs.HintCache)
	var col shm.Collector
	const under = 8
	var tickets [under]shm.Ticket
	e := shm.Entry{Op: shm.OpWrite, Bytes: 4096, Flags: shm.WithAttributes}
	var c shm.Completion
	g := h.r.Ring()
	n := testing.AllocsPerRun(250, func() {
		wakes := false
		for i := range tickets {
			at := int64(i) * shm.PageBytes
			k, err := h.r.Issue(at, 4096, &set)
			if err != nil {
				t.Fatal("no place for attributes: ", err)
			}
			tickets[i] = k
			e.Off, e.Data = uint64(at), uint64(at)
			_, wake := g.Submit(&e)
			wakes = wakes || wake
		}
		if wakes {
			_, _ = unix.Write(h.fds[0], wakeWord)
		}
		for range tickets {
			for !g.Next(&c) {
				runtime.Gosched()
			}
			if c.Result != 4096 {
				t.Fatal("the request failed: ", c.Result)
			}
		}
		for _, k := range tickets {
			if h.r.Collect(k, &col).For(attrs.IDHint).Status != attrs.Handled {
				t.Fatal("the hint is not handled")
			}
		}
		e.Op ^= 1
	})
	if n != 0 {
		t.Errorf("%v allocations for %d requests", n, under)
	}
}

func BenchmarkDirect(b *testing.B) {
	w := newDirectBench(b, directOptions{})
	for _, c := range []struct {
		name string
		set  bool
	}{{"plain", false}, {"attributes", true}} {
		b.Run(c.name, func(b *testing.B) {
			d := w.open(api.Options{})
			defer func() { _ = d.Close() }()
			var set attrs.Set
			set.SetHint(attrs.HintCache)
			ops := make([]api.Op, 32)
			for i := range ops {
				buf, err := d.Alloc(4096)
				must(b, err)
				ops[i] = api.Op{Kind: api.Write, Buf: buf, Off: int64(i) << 12}
				must(b, d.Submit(&ops[i]))
				must(b, ops[i].Wait())
				ops[i].Kind = api.Read
				if c.set {
					ops[i].Attrs = &set
				}
			}
			for i := range ops {
				must(b, d.Submit(&ops[i]))
			}
			for i := 0; b.Loop(); i = (i + 1) % len(ops) {
				must(b, ops[i].Wait())
				must(b, d.Submit(&ops[i]))
			}
			for i := range ops {
				must(b, ops[i].Wait())
			}
		})
	}
}

// TestDirectEntries: what the daemon says to entries that make no sense, and to a client that ends
// while one of its requests waits for a buffer.
func TestDirectEntries(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	h := newHostile(t, b)
	const end = 64 * shm.PageBytes
	for _, c := range []struct {
		e    shm.Entry
		want int64
	}{
		{shm.Entry{Op: shm.OpRead, Bytes: 4096}, 4096},
		{shm.Entry{Op: shm.OpRead, Bytes: 4096, Data: end - 4096}, 4096},
		{shm.Entry{Op: shm.OpRead, Bytes: 4096, Data: end - 2048}, -int64(unix.EINVAL)},
		{shm.Entry{Op: shm.OpWrite, Bytes: 4096, Data: 1 << 63}, -int64(unix.EINVAL)},
		{shm.Entry{Op: shm.OpWrite, Bytes: 4096, Off: 1 << 63}, -int64(unix.EINVAL)},
		{shm.Entry{Op: shm.OpRead, Bytes: 0}, -int64(unix.EINVAL)},
		{shm.Entry{Op: shm.OpRead, Bytes: maxDirect + 512}, -int64(unix.EINVAL)},
		{shm.Entry{Op: shm.OpRead, Bytes: 4096, Device: 1}, -int64(unix.EBADF)},
		{shm.Entry{Op: shm.OpRead, Bytes: 4096, Flags: 1 << 7}, -int64(unix.EINVAL)},
		{shm.Entry{Op: 6, Bytes: 4096}, -int64(unix.EINVAL)},
		{shm.Entry{Op: shm.OpDiscard, Bytes: 4096, Flags: shm.WithAttributes, Data: end}, -int64(unix.EINVAL)},
		{shm.Entry{Op: shm.OpDiscard, Bytes: 4096, Off: directDiskBytes}, -int64(unix.EINVAL)},
		{shm.Entry{Op: shm.OpQuery, Bytes: 8}, 8},
		{shm.Entry{Op: shm.OpQuery, Bytes: 4096}, int64(4 * len(attrs.Attributes()))},
		{shm.Entry{Op: shm.OpFlush}, 0},
	} {
		if got := ringTrip(h, &c.e); got != c.want {
			t.Errorf("%+v: %d, want %d", c.e, got, c.want)
		}
	}
	b.onRing(func(d *directRing, _ *ringClient) {
		for d.bufs.get(4096) != nil {
			continue
		}
	})
	if _, wake := h.r.Ring().Submit(&shm.Entry{Op: shm.OpRead, Bytes: 4096}); wake {
		_, _ = unix.Write(h.fds[0], wakeWord)
	}
	for waits := false; !waits; {
		b.onRing(func(_ *directRing, r *ringClient) { waits = r.wait != nil })
	}
	h.close()
	b.clients(0)
	d := b.directServer()
	must(t, d.loop.do(func() error {
		n := 0
		for q := d.ring.free; q != nil; q = q.next {
			n++
		}
		if n != len(d.ring.reqs) || n == 0 {
			t.Errorf("%d requests of %d came back", n, len(d.ring.reqs))
		}
		return nil
	}))
}
