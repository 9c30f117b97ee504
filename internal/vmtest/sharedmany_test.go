//go:build vm

package vmtest

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/attrs/client"
)

// sharedClients is as many as a cache lets in by default.
const sharedClients = 64

// sharedGuests is how many come and go at a time: for some moments the daemon still counts those that
// have just gone.
const sharedGuests = 16

// TestSharedMany: clients come, do some I/O and go, again and again; then there are as many as a cache
// lets in, one more is told why it is not, and the daemon dies under them. Each client has its own
// data, and nothing is left registered.
func TestSharedMany(t *testing.T) {
	NeedKernel(t, "7.1")
	OnlyLong(t)
	Limit(t, 6*time.Minute)
	c := NewCache(t, Slice(t, "ssd", 0, 128))
	dev := c.Attach(t, Slice(t, "slow", 0, 128), "data", writeback...)
	var clients sync.WaitGroup
	for i := range sharedGuests {
		clients.Go(func() {
			if err := comeAndGo(dev, i); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	clients.Wait()
	c.sharesMemory(t, "data", 0)
	if !t.Failed() {
		stay(t, c, dev)
	}
	c.nothingShared(t, "data")
}

// comeAndGo opens the device, writes and reads its own place, and closes it, three times.
func comeAndGo(dev string, i int) error {
	for round := range 3 {
		d, err := client.Open(dev, client.Options{Channel: client.Shared, Bytes: 1 << 20})
		if err != nil {
			return err
		}
		if err := errors.Join(ownPlace(d, i, int64(round)), d.Close()); err != nil {
			return err
		}
	}
	return nil
}

func ownPlace(d *client.Device, i int, round int64) error {
	buf, err := d.Alloc(sharedBytes)
	if err != nil {
		return err
	}
	var set attrs.Set
	set.SetHint(attrs.HintCache)
	Fill(buf, uint64(i)<<32|uint64(round))
	want := bytes.Clone(buf)
	l := sharedLoad{d: d}
	if err := l.handled(d.WriteAt(buf, int64(i)*sharedBytes, &set)); err != nil {
		return err
	}
	clear(buf)
	if err := l.handled(d.ReadAt(buf, int64(i)*sharedBytes, &set)); err != nil {
		return err
	}
	if !bytes.Equal(buf, want) {
		return errors.New("other data than was written")
	}
	return nil
}

// stay opens the device for all clients that there may be, kills the daemon under them, and sees whether
// all go on.
func stay(t *testing.T, c *Cache, dev string) {
	t.Helper()
	var list []*client.Device
	for range sharedClients {
		d, err := client.Open(dev, client.Options{Channel: client.Shared, Bytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, d)
	}
	c.sharesMemory(t, "data", sharedClients)
	if d, err := client.Open(dev, client.Options{Channel: client.Shared}); !errors.Is(err,
		client.ErrChannel) && !errors.Is(err, unix.EUSERS) {
		t.Errorf("one client more: %v", err)
		_ = d.Close()
	} else {
		t.Logf("one client more: %v", err)
	}
	c.Kill(t)
	c.Start(t)
	c.sharesMemory(t, "data", sharedClients)
	var all sync.WaitGroup
	for i, d := range list {
		all.Go(func() {
			if err := errors.Join(ownPlace(d, i, 1), d.Close()); err != nil {
				t.Errorf("client %d after the restart: %v", i, err)
			}
		})
	}
	all.Wait()
	c.sharesMemory(t, "data", 0)
}
