//go:build vm

package vmtest

import (
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/attrs/shm"
	"ubcache/internal/uring"
)

// mergeClient is a client that submits many requests at once, as programs in other languages do: the
// block layer sees them together and would make one request of those that are neighbours.
type mergeClient struct {
	t      *testing.T
	region *shm.Region
	conn   *net.UnixConn
	fd     int
	ring   *uring.Ring
}

const mergeRequests = 8

func newMergeClient(t *testing.T, dev string) *mergeClient {
	t.Helper()
	m := &mergeClient{t: t}
	var err error
	must := func(e error) {
		t.Helper()
		if e != nil {
			t.Fatal(e)
		}
	}
	m.region, err = shm.Create(shm.Options{Bytes: 1 << 20})
	must(err)
	m.fd, err = unix.Open(dev, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	must(err)
	m.conn, err = net.DialUnix("unixpacket", nil,
		&net.UnixAddr{Name: runtimeDir + "/main" + shm.SocketSuffix, Net: "unixpacket"})
	must(err)
	for _, ask := range []struct {
		m  shm.Message
		fd int
	}{
		{shm.Message{Kind: shm.Hello}, m.region.FD()},
		{shm.Message{Kind: shm.OpenDevice, Flags: shm.FlagRegister}, m.fd},
	} {
		must(ask.m.Send(m.conn, ask.fd))
		var reply shm.Message
		_, err := reply.Receive(m.conn)
		must(err)
		must(reply.Err())
		if reply.Flags != ask.m.Flags {
			t.Fatal("the memory is not registered")
		}
	}
	m.ring, err = uring.New(2*mergeRequests, uring.Options{})
	must(err)
	return m
}

func (m *mergeClient) close() {
	_ = m.ring.Close()
	_ = unix.Close(m.fd)
	_ = m.conn.Close()
	_ = m.region.Close()
}

// mergeOutcome is what came of one request.
type mergeOutcome struct {
	res    int32
	status attrs.Status
}

// write submits neighbouring blocks in one go, with checksums of which one is wrong. The buffers are
// neighbours too, or, scattered, all but.
func (m *mergeClient) write(bad int, scattered bool) []mergeOutcome {
	m.t.Helper()
	tickets := make([]shm.Ticket, mergeRequests)
	for i := range tickets {
		place := i * 4096
		if scattered {
			place = (mergeRequests - i) * 3 * 4096
		}
		buf := m.region.Data()[place:][:4096]
		Fill(buf, uint64(i))
		sums := attrs.CRC32C.AppendSums(nil, buf)
		if i == bad {
			sums[0] ^= 1
		}
		var set attrs.Set
		set.SetChecksum(attrs.Checksum{Algorithm: attrs.CRC32C, Sums: sums})
		var err error
		if tickets[i], err = m.region.Issue(int64(place), len(buf), &set); err != nil {
			m.t.Fatal(err)
		}
		s := m.ring.NextSQE()
		s.PrepWrite(uring.FD(m.fd), buf, uint64(i)*4096, 0)
		s.SetUserData(uint64(i))
	}
	out := make([]mergeOutcome, mergeRequests)
	for n := 0; n < mergeRequests; {
		if err := m.ring.SubmitAndWait(1, 20*time.Second); err != nil {
			m.t.Fatal(err)
		}
		for c := m.ring.Peek(); c != nil; c = m.ring.Peek() {
			out[c.UserData].res = c.Res
			m.ring.Advance(1)
			n++
		}
	}
	var c shm.Collector
	for i := range tickets {
		out[i].status = m.region.Collect(tickets[i], &c).For(attrs.IDChecksum).Status
	}
	return out
}

// TestSharedMerge: requests that are submitted together have each its own outcome and keep their
// attributes, as nothing is merged while memory is registered. With merges, which somebody may switch
// on again, the requests that one bad part takes along still are told in their slots what was done.
func TestSharedMerge(t *testing.T) {
	NeedKernel(t, "7.1")
	Limit(t, 2*time.Minute)
	c := NewCache(t, Slice(t, "ssd", 0, 128))
	dev := c.Attach(t, Slice(t, "slow", 0, 128), "data", writeback...)
	m := newMergeClient(t, dev)
	for _, scattered := range []bool{false, true} {
		before := c.Stats(t).Devices["data"].Writes
		const bad = 3
		for i, o := range m.write(bad, scattered) {
			want := int32(4096)
			if i == bad {
				want = -int32(unix.EILSEQ)
			}
			if o.res != want || o.status != attrs.Handled {
				t.Errorf("scattered %v, request %d: %d, checksum %v; want %d and handled", scattered, i,
					o.res, o.status, want)
			}
		}
		// The bad one is refused before it counts.
		if n := c.Stats(t).Devices["data"].Writes - before; n != mergeRequests-1 {
			t.Errorf("scattered %v: %d writes, want %d", scattered, n, mergeRequests-1)
		}
	}
	// What is prevented by that.
	if err := os.WriteFile(QueueFile(t, dev, "nomerges"), []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	failed := 0
	for i, o := range m.write(3, false) {
		if o.res < 0 {
			failed++
		}
		if o.status != attrs.Handled {
			t.Errorf("merged request %d: checksum %v", i, o.status)
		}
	}
	silent := 0
	for _, o := range m.write(mergeRequests, true) {
		if o.status == attrs.NotHandled {
			silent++
		}
	}
	fmt.Printf("with merges: %d of %d requests fail with one of them, %d scattered ones lose their "+
		"attributes\n", failed, mergeRequests, silent)
	if failed < 2 || silent < 2 {
		t.Error("nothing was merged, so the test has shown nothing")
	}
	m.close()
	c.nothingShared(t, "data")
}
