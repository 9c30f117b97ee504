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

// do does a request, and does it again if a daemon that ended has failed it.
func (d *Device) do(op *Op) {
	if err := d.enter(); err != nil {
		op.Err = err
		return
	}
	defer d.life.busy.Done()
	turn := d.turns()
	d.run(op)
	// The next daemon may be short-lived too.
	for tries := 0; tries < reviveTries && errors.Is(op.Err, unix.EIO); tries++ {
		if d.turns() == turn && !d.revive() {
			return
		}
		turn = d.turns()
		d.run(op)
	}
}

// turns is how often the channel was found anew.
func (d *Device) turns() int {
	d.use.RLock()
	defer d.use.RUnlock()
	return d.turn
}

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
	d.again.Lock()
	defer d.again.Unlock()
	d.use.Lock()
	defer d.use.Unlock()
	if d.turn != turn {
		return d.gone == nil // somebody else has been here
	}
	if time.Since(d.tried) < reviveEvery {
		return false
	}
	for end := time.Now().Add(reviveTime); ; time.Sleep(revivePause) {
		err := d.findAgain()
		if err == nil {
			return true
		}
		d.gone = fmt.Errorf("the daemon has ended, and no other is there (%w): %w", err, unix.EIO)
		if time.Now().After(end) {
			d.tried = time.Now()
			return false
		}
	}
}

// findAgain tries to find a channel once. d.use is locked.
func (d *Device) findAgain() error {
	if d.channel == Shared && len(d.conns) > 0 {
		// Connections to other caches stay: they have the memory registered.
		if err := d.shareAgain(); !errors.Is(err, errNotRegistered) {
			return err
		}
	}
	d.disconnect()
	d.region.Ring().Reset()
	if err := d.reconnect(); err != nil {
		return err
	}
	d.gone = nil
	d.turn++
	return nil
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
