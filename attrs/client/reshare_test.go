package client

import (
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs/shm"
)

// TestSharedReconnect: the daemon goes away and another takes over. The client introduces the same
// memory to that, by itself and without a request that has failed; requests go on in between.
func TestSharedReconnect(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "fake"+shm.SocketSuffix)
	var opened atomic.Int64
	var memory [2]shm.Identity
	serve := func(turn int) (l *net.UnixListener, conn <-chan *net.UnixConn) {
		l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
		must(t, err)
		c := make(chan *net.UnixConn, 1)
		go func() {
			nc, err := l.AcceptUnix()
			if err != nil {
				return
			}
			c <- nc
			serveOne(t, nc, &memory[turn], &opened)
		}()
		return l, c
	}
	l, conns := serve(0)
	path := makeFile(t)
	d := open(t, path, Options{Socket: socket, Channel: Shared})
	if n := opened.Load(); n != 1 {
		t.Fatalf("%d devices opened, want 1", n)
	}
	must(t, l.Close())
	_ = os.Remove(socket)
	must(t, (<-conns).Close())
	b, err := d.Alloc(4096)
	must(t, err)
	_, _, err = d.WriteAt(b, 0, bypass())
	must(t, err)
	l, conns = serve(1)
	defer l.Close()
	for end := time.Now().Add(10 * time.Second); opened.Load() != 2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the client does not come back")
		}
	}
	if memory[0] != memory[1] || memory[0].Inode == 0 {
		t.Errorf("it came back with other memory: %+v, %+v", memory[0], memory[1])
	}
	for end := time.Now().Add(10 * time.Second); d.turns() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the client has not taken the new connection")
		}
	}
	if list, err := d.Query(); err != nil || len(list) != 1 {
		t.Errorf("query of the new daemon: %v, %v", list, err)
	}
	if ch, _ := d.Channel(); ch != Shared {
		t.Errorf("channel %s", ch)
	}
	must(t, d.Close())
	_ = (<-conns).Close()
}

// serveOne serves a client until its connection ends, and notes which memory it has.
func serveOne(t *testing.T, c *net.UnixConn, id *shm.Identity, opened *atomic.Int64) {
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
			if *id, err = shm.Identify(fds[0]); err != nil {
				t.Error(err)
			}
		case shm.List:
			if answer.Text = "disk"; m.Index > 0 {
				answer.Errno = unix.ENOENT
			}
		case shm.OpenDevice:
			answer.Text, answer.Flags = m.Text, m.Flags&shm.FlagRegister
			opened.Add(1)
		case shm.Query:
			answer.Text = string(shm.AppendCapabilities(nil, []shm.Capability{{ID: 1, Supported: true}}))
		}
		shm.CloseAll(fds)
		if answer.Send(c) != nil {
			return
		}
	}
}
