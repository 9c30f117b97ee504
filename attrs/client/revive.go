package client

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// reviveTime is how long another daemon is waited for; reviveEvery, how long it is then given up.
	reviveTime  = 15 * time.Second
	reviveEvery = time.Second
	revivePause = 20 * time.Millisecond
	// reviveTries is for how many daemons a request is done again.
	reviveTries = 4
)

// broken says whether the daemon is known to be gone.
func (d *Device) broken() bool {
	d.use.RLock()
	defer d.use.RUnlock()
	return d.gone != nil || d.ring != nil && d.ring.isDead()
}

// lost asks whether a daemon is gone. d.use is read-locked.
func (d *Device) lost() bool {
	if d.gone != nil || d.ring != nil && d.ring.isDead() {
		return true
	}
	for _, c := range d.conns {
		if c.ended() {
			return true
		}
	}
	return false
}

// ended says whether the other side has closed the connection.
func (c *conn) ended() bool {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return true
	}
	ended := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		ended = n <= 0 && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	return err != nil || ended
}

// revive finds the channel anew after a daemon has ended: another takes over its devices. It returns
// whether requests may be tried again; false also if no daemon is gone.
func (d *Device) revive() bool {
	d.use.RLock()
	lost, turn := d.lost(), d.turn
	d.use.RUnlock()
	if !lost {
		return false
	}
	d.use.Lock()
	defer d.use.Unlock()
	if d.turn != turn {
		return d.gone == nil // somebody else has been here
	}
	if time.Since(d.tried) < reviveEvery {
		return false
	}
	for end := time.Now().Add(reviveTime); ; time.Sleep(revivePause) {
		d.disconnect()
		d.region.Ring().Reset()
		err := d.reconnect()
		if err == nil {
			d.gone = nil
			d.turn++
			return true
		}
		d.gone = fmt.Errorf("the daemon has ended, and no other is there (%w): %w", err, unix.EIO)
		if time.Now().After(end) {
			d.tried = time.Now()
			return false
		}
	}
}

// disconnect gives up all connections.
func (d *Device) disconnect() {
	if d.ring != nil {
		d.ring.close()
		d.ring = nil
	}
	for _, c := range d.conns {
		_ = c.c.Close()
	}
	d.conns = nil
}

// reconnect looks for a channel as Open does.
func (d *Device) reconnect() error {
	if d.o.Device != "" {
		return d.openByName()
	}
	was, why := d.channel, d.why
	d.findChannel()
	if d.channel == Plain || d.o.Channel != Auto && d.channel != d.o.Channel {
		err := fmt.Errorf("%w: %s", ErrChannel, d.why)
		d.channel, d.why = was, why
		d.disconnect()
		return err
	}
	return nil
}
