package daemon

import (
	"bytes"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	api "ubcache/attrs/client"
	"ubcache/attrs/shm"
)

// hostileClient is a client that keeps to nothing: it drives a real daemon through its socket and its
// memory, of which it knows the layout.
type hostileClient struct {
	t   testing.TB
	b   *directBench
	r   *shm.Region
	mem []byte // all of the region
	c   *net.UnixConn
	fds []int
}

func newHostile(t testing.TB, b *directBench) *hostileClient {
	t.Helper()
	h := &hostileClient{t: t, b: b}
	var err error
	h.r, err = shm.Create(shm.Options{Bytes: 64 * shm.PageBytes, Entries: 8})
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Fstat(h.r.FD(), &st))
	h.mem, err = unix.Mmap(h.r.FD(), 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	h.c, err = net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: b.directPath(), Net: "unixpacket"})
	must(t, err)
	must(t, h.c.SetDeadline(time.Now().Add(30*time.Second)))
	m := shm.Message{Kind: shm.Hello, Flags: shm.FlagRing}
	must(t, m.Send(h.c, h.r.FD()))
	h.fds, err = m.Receive(h.c)
	must(t, err)
	must(t, m.Err())
	m = shm.Message{Kind: shm.OpenDevice, Text: "disk0"}
	must(t, m.Send(h.c))
	_, err = m.Receive(h.c)
	must(t, err)
	must(t, m.Err())
	return h
}

func (h *hostileClient) close() {
	_ = h.c.Close()
	shm.CloseAll(h.fds)
	_ = unix.Munmap(h.mem)
	_ = h.r.Close()
}

// Steps of a script, one byte each, with their arguments in the bytes that follow.
const (
	stepEntry = iota // the next 64 bytes are an entry
	stepSlot         // page, then bytes for its attribute slot
	stepWord         // where in header and ring, what
	stepIssue        // page, pages: attributes as they should be
	stepHole         // where, in units of 4096: give the memory back
	stepWake
	stepMessage // bytes for the socket
	steps
)

// play carries out a script. What the script lacks at its end is 0.
func (h *hostileClient) play(script []byte) {
	next := func(n int) []byte {
		b := make([]byte, n)
		script = script[copy(b, script):]
		return b
	}
	g := h.r.Ring()
	for len(script) > 0 {
		switch script[0] % steps {
		case stepEntry:
			next(1)
			// By way of the ring's own words, as far as the script has left them in order.
			e := next(64)
			entry := shm.Entry{
				Op: shm.Op(e[0] % 8), Flags: shm.Flags(e[1]), Device: uint16(e[2] % 2),
				Bytes: uint32(e[4]) * 512, Off: uint64(e[8]) * 4096 << (e[9] % 64),
				Data: uint64(e[16])*512 + uint64(e[17])<<(e[18]%64), UserData: uint64(e[24]),
			}
			_, _ = g.Submit(&entry)
		case stepSlot:
			next(1)
			at := h.slots() + int(next(1)[0]%64)*2048
			copy(h.mem[at:at+512], next(64))
		case stepWord:
			next(1)
			at := int(next(1)[0]) * 64 % h.slots()
			copy(h.mem[at:at+4], next(4))
		case stepIssue:
			next(1)
			b := next(3)
			var set attrs.Set
			set.SetHint(attrs.Hint(b[0] % 8))
			_, _ = h.r.Issue(int64(b[1])*1024, int(b[2])*1024, &set)
		case stepHole:
			next(1)
			_ = unix.Fallocate(h.r.FD(), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
				int64(next(1)[0])*4096, 4096)
		case stepWake:
			next(1)
			_, _ = unix.Write(h.fds[0], []byte{1, 0, 0, 0, 0, 0, 0, 0})
		case stepMessage:
			next(1)
			_ = h.c.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = h.c.Write(next(80))
		}
	}
	_, _ = unix.Write(h.fds[0], []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

func (h *hostileClient) slots() int { return len(h.mem) - 64*(2048+shm.PageBytes) }

// FuzzDirect has a hostile client do what it wants with the real socket and the real memory, while
// a good one works on the other device. The daemon must live, and the good one notice nothing.
func FuzzDirect(f *testing.F) {
	b := newDirectBench(f, directOptions{})
	good := b.open(api.Options{Device: "disk1"})
	buf, err := good.Alloc(8192)
	must(f, err)
	want := bytes.Repeat([]byte("of another client"), 500)[:8192]
	f.Cleanup(func() { _ = good.Close() })
	entry := func(op, flags, sectors, off, data byte) []byte {
		e := make([]byte, 65)
		e[0], e[1], e[2], e[5], e[9], e[17], e[25] = stepEntry, op, flags, sectors, off, data, 9
		return e
	}
	f.Add(bytes.Join([][]byte{
		{stepIssue, 1, 4, 16}, entry(1, 4, 32, 1, 8), entry(0, 0, 32, 1, 0), {stepWake},
	}, nil))
	f.Add(bytes.Join([][]byte{
		entry(5, 0, 8, 0, 0), {stepHole, 40}, entry(1, 1, 200, 2, 0), {stepWord, 65, 9, 0, 0, 0},
	}, nil))
	f.Add(append([]byte{stepSlot, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2}, entry(3, 4, 1, 0, 0)...))
	f.Add(append([]byte{stepMessage}, "UBSP\x01\x00\x03\x00"...))
	f.Fuzz(func(t *testing.T, script []byte) {
		h := newHostile(t, b)
		h.play(script)
		copy(buf, want)
		var set attrs.Set
		set.SetHint(attrs.HintBypass)
		if _, res, err := good.WriteAt(buf, 4096, &set); err != nil ||
			res.For(attrs.IDHint).Status == attrs.NotHandled {
			t.Errorf("a write of the good client: %v", err)
		}
		clear(buf)
		if _, _, err := good.ReadAt(buf, 4096, nil); err != nil || !bytes.Equal(buf, want) {
			t.Errorf("a read of the good client: %v", err)
		}
		h.close()
		b.t = t
		b.clients(1)
	})
}

// TestDirectHostile plays random scripts while another thread writes anything anywhere.
func TestDirectHostile(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	rng := rand.New(rand.NewPCG(7, 7))
	for range 60 {
		h := newHostile(t, b)
		stop, over := make(chan struct{}), make(chan struct{})
		noise := rand.New(rand.NewPCG(rng.Uint64(), 1))
		go func() {
			defer close(over)
			for {
				select {
				case <-stop:
					return
				default:
				}
				// Where the head of the ring is only now and then: it ends the client.
				at := 4 * (2048 + noise.IntN((len(h.mem)-8192)/4))
				if noise.IntN(5000) == 0 {
					at = 4 * noise.IntN(2048)
				}
				h.mem[at] = byte(noise.Uint32())
			}
		}()
		for range 5 {
			script := make([]byte, 1000)
			for i := range script {
				script[i] = byte(rng.Uint32() >> rng.IntN(32))
			}
			h.play(script)
		}
		close(stop)
		<-over
		h.close()
		b.clients(0)
	}
}

// TestDirectMeddled: a client changes its buffer, and takes the memory away, all the time while it reads into it. That is its
// own loss: nothing is blamed on the SSD, and nobody else sees anything of it.
func TestDirectMeddled(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	d, other := b.open(api.Options{}), b.open(api.Options{})
	defer closeDevice(t, other)
	defer closeDevice(t, d)
	const n = 256 << 10
	buf, err := d.Alloc(n)
	must(t, err)
	mem, err := other.Alloc(n)
	must(t, err)
	for i := range mem {
		mem[i] = byte(i / 4096)
	}
	want := bytes.Clone(mem)
	_, _, err = other.WriteAt(mem, 0, nil)
	must(t, err)
	stop, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		noise := rand.New(rand.NewPCG(7, 8))
		for {
			select {
			case <-stop:
				return
			default:
			}
			at := noise.IntN(n)
			if noise.IntN(8) == 0 {
				at = at / 4096 * 4096
				_ = unix.Madvise(buf[at:at+4096], unix.MADV_REMOVE)
			} else {
				buf[at] = byte(noise.Uint32())
			}
		}
	}()
	before := b.cache.Stats()
	for range 500 {
		if _, _, err := d.ReadAt(buf, 0, nil); err != nil {
			t.Fatal(err)
		}
		clear(mem)
		if _, _, err := other.ReadAt(mem, 0, nil); err != nil || !bytes.Equal(mem, want) {
			t.Fatalf("the other client: error %v, data right: %v", err, bytes.Equal(mem, want))
		}
	}
	close(stop)
	<-over
	after := b.cache.Stats()
	const wanted = 2 * 500 * n
	if got := after.SSDReadBytes - before.SSDReadBytes; got <= wanted {
		t.Errorf("%d bytes came from the SSD: nothing had to be read twice", got)
	}
	for id, s := range after.Backings {
		if s.HealedBlocks != 0 || s.BadBlocks != 0 || s.SSDErrors != 0 {
			t.Errorf("backing device %d: %+v", id, s)
		}
	}
	if st := b.cache.Status(); st.SSDState != "ok" {
		t.Errorf("the SSD is %s: %s", st.SSDState, st.SSDProblem)
	}
	if _, _, err := d.ReadAt(buf, 0, nil); err != nil || !bytes.Equal(buf, want) {
		t.Errorf("afterwards: error %v, data right: %v", err, bytes.Equal(buf, want))
	}
}

// TestDirectTaken: a client that fills up what the daemon could wait for stops nobody.
func TestDirectTaken(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	h := newHostile(t, b)
	defer h.close()
	// The eventfd is full, blocks, and the client never reads its wake-ups.
	flags, err := unix.FcntlInt(uintptr(h.fds[0]), unix.F_GETFL, 0)
	must(t, err)
	_, err = unix.FcntlInt(uintptr(h.fds[0]), unix.F_SETFL, flags&^unix.O_NONBLOCK)
	must(t, err)
	_, err = unix.Write(h.fds[0], bytes.Repeat([]byte{0xff}, 7))
	if err == nil {
		t.Fatal("seven bytes were taken")
	}
	_, err = unix.Write(h.fds[0], append(bytes.Repeat([]byte{0xff}, 7), 0xfe)[:8])
	must(t, err)
	g := h.r.Ring()
	// It keeps to the rules of the ring, or it would be cut off.
	busy := 0
	for n := 0; n < 3000; {
		g.Sleep()
		if busy < h.r.Entries() {
			if ok, _ := g.Submit(&shm.Entry{Op: shm.OpFlush}); !ok {
				t.Fatal("there is no room in the ring")
			}
			busy++
			n++
		}
		for g.Next(new(shm.Completion)) {
			busy--
		}
		removed := false
		b.onRing(func(_ *directRing, r *ringClient) { removed = r.removed })
		if removed {
			t.Fatal("the client was cut off")
		}
	}
	good := b.open(api.Options{Device: "disk1"})
	defer closeDevice(t, good)
	if _, err := good.Flush(nil); err != nil {
		t.Error(err)
	}
}
