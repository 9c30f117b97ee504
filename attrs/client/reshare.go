package client

import (
	"errors"
	"fmt"
	"time"

	"ubcache/attrs/shm"
)

// A restart of a daemon does not end channel Shared: the next daemon finds the memory by itself, and
// requests that are under way in the kernel only wait for it. But without a connection the memory is
// the device's no longer than this process lives, and there is nobody to ask. So connections that
// have ended are made anew.

// watchEvery is how often connections are looked at.
const watchEvery = time.Second

// watch looks after the connections of channel Shared until the device is closed.
func (d *Device) watch() {
	d.over = make(chan struct{})
	d.watched.Go(func() {
		t := time.NewTicker(watchEvery)
		defer t.Stop()
		for {
			select {
			case <-d.over:
				return
			case <-t.C:
				d.look()
			}
		}
	})
}

// look makes connections anew that have ended.
func (d *Device) look() {
	d.again.Lock()
	defer d.again.Unlock()
	d.use.RLock()
	var ended []*conn
	if d.channel == Shared {
		for _, c := range d.conns {
			if c.ended() {
				ended = append(ended, c)
			}
		}
	}
	d.use.RUnlock()
	for _, c := range ended {
		n, err := d.reshare(c)
		if err != nil {
			continue // until the next look
		}
		d.use.Lock()
		d.replace(c, n)
		d.use.Unlock()
	}
}

// replace puts a new connection in the place of one that has ended. d.use is locked.
func (d *Device) replace(old, c *conn) {
	for i := range d.conns {
		if d.conns[i] == old {
			d.conns[i] = c
		}
	}
	_ = old.c.Close()
	d.turn++
	d.gone = nil
}

// shareAgain makes all connections anew that have ended. d.use is locked. errNotRegistered says that there
// is a daemon, but that it takes the memory no more: another channel is to be found. With other
// errors there is none yet.
func (d *Device) shareAgain() error {
	err := errNotRegistered
	for _, c := range d.conns {
		if !c.ended() {
			continue
		}
		var n *conn
		if n, err = d.reshare(c); err != nil {
			return err
		}
		d.replace(c, n)
	}
	return err
}

var errNotRegistered = errors.New("the block device has not taken the memory")

// reshare tells the daemon that has taken over of the memory, which is registered still.
func (d *Device) reshare(old *conn) (*conn, error) {
	c, _, err := d.connect(old.socket, 0)
	if err != nil {
		return nil, err
	}
	if old.listed {
		if n, why := c.registerAll(); n == 0 {
			err = fmt.Errorf("%w: %s", errNotRegistered, why)
		}
	} else {
		c.info, err = c.ask(&shm.Message{Kind: shm.OpenDevice, Flags: shm.FlagRegister}, d.fd)
		if err == nil && c.info.Flags&shm.FlagRegister == 0 {
			err = errNotRegistered
		}
	}
	if err != nil {
		_ = c.c.Close()
		return nil, err
	}
	c.opened = true
	return c, nil
}
