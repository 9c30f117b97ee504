package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// startTimeout bounds the steps of a start that wait for the kernel only.
const startTimeout = 30 * time.Second

// Start makes a thread for each queue, with the handler that factory returns for it, and then the
// disk. When it returns, /dev/ublkbN exists and serves. If it fails, everything is undone, except
// that the device itself still exists: Delete it, or, if it was recovered, Recover it again.
func (d *Device) Start(factory func(queue int) (Handler, error)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.started || d.mu.deleted {
		return fmt.Errorf("ublk%d: start: already started once; create or recover it anew", d.id)
	}
	d.mu.started = true
	if v := d.opts.OOMScoreAdj; v != 0 {
		err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(v)), 0)
		if err != nil {
			d.onError(fmt.Errorf("ublk%d: protect from the OOM killer: %w", d.id, err))
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	var err error
	if d.charFD, err = openChar(ctx, d.id); err != nil {
		close(d.done)
		return err
	}
	if err = d.startQueues(factory); err != nil {
		return err
	}
	d.live.Store(true)
	if d.recover {
		err = d.ctl.endRecovery(ctx, d.id)
	} else {
		err = d.ctl.startDev(ctx, d.id)
	}
	if err == nil {
		err = waitNode(ctx, d.Path())
	}
	if err != nil {
		return errors.Join(err, d.abort())
	}
	return nil
}

// startQueues starts the queues' threads and one goroutine that waits for them all. When it fails,
// they have ended again.
func (d *Device) startQueues(factory func(queue int) (Handler, error)) error {
	var errs []error
	for i := range d.opts.Queues {
		h, err := factory(i)
		if err != nil {
			errs = append(errs, fmt.Errorf("ublk%d: make handler of queue %d: %w", d.id, i, err))
			break
		}
		d.queues = append(d.queues, &Queue{
			dev: d, id: i, depth: d.opts.Depth, mode: d.opts.Mode, h: h, wakeFD: -1,
		})
	}
	if len(errs) > 0 {
		d.queues = nil
		d.closeChar(nil)
		return errs[0]
	}
	n := len(d.queues)
	ready, ended, fetch := make(chan error, n), make(chan error, n), make(chan bool, n)
	for _, q := range d.queues {
		go func() { ended <- q.serve(d.charFD, &d.opts, &d.info, fetch, ready) }()
	}
	go d.reap(ended)
	// All handlers first, then all fetches.
	step := func() {
		for range n {
			if err := <-ready; err != nil {
				errs = append(errs, err)
			}
		}
	}
	step()
	for range n {
		fetch <- len(errs) == 0
	}
	if len(errs) > 0 {
		<-d.done
		return errors.Join(errs...)
	}
	if step(); len(errs) > 0 {
		return errors.Join(append(errs, d.abort())...)
	}
	return nil
}

// reap waits for the queues and closes /dev/ublkcN, on which the driver fails or keeps what is
// left.
func (d *Device) reap(ended <-chan error) {
	var errs []error
	for range d.queues {
		errs = append(errs, <-ended)
	}
	d.closeChar(errors.Join(errs...))
}

// closeChar is the last act of a started device.
func (d *Device) closeChar(err error) {
	if e := unix.Close(d.charFD); e != nil {
		err = errors.Join(err, fmt.Errorf("close %s: %w", charPath(d.id), e))
	}
	d.live.Store(false)
	d.err = err
	close(d.done)
}

// abort ends the queues of a device that could not be started.
func (d *Device) abort() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	var err error
	if !d.recover {
		// It ends the fetches; without a disk there is nothing to wait for.
		err = d.ctl.stopDev(ctx, d.id)
	}
	if d.recover || err != nil {
		// Stopping would lose the I/O that waits in the kernel; closing the rings does not.
		for _, q := range d.queues {
			q.killed.Store(true)
			q.Wake()
		}
	}
	select {
	case <-d.done:
		return err
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("ublk%d: abort start: queues do not end", d.id))
	}
}

// waitNode waits for devtmpfs or udev to make the node.
func waitNode(ctx context.Context, path string) error {
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		if wait(ctx, time.Millisecond) != nil {
			return fmt.Errorf("wait for %s: the node does not appear", path)
		}
	}
}

// Stop removes the disk. The driver first waits for the requests that are with the handlers, or
// fails those of a device with recovery; then the queues drain and end. An open or mounted disk
// does not keep it from stopping: its further I/O fails. The device itself stays until Delete, and
// cannot be started again.
func (d *Device) Stop(ctx context.Context) error {
	if !d.running() {
		return nil
	}
	if err := d.ctl.stopDev(ctx, d.id); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	return d.wait(ctx, "stop device")
}

func (d *Device) running() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.mu.started {
		return false
	}
	select {
	case <-d.done:
		return false
	default:
		return true
	}
}

// wait waits until the queues have ended.
func (d *Device) wait(ctx context.Context, what string) error {
	select {
	case <-d.done:
		return d.Err()
	case <-ctx.Done():
		return fmt.Errorf("ublk%d: %s: queues do not end: %w", d.id, what, ctx.Err())
	}
}

// TryStop is Stop if nobody has the disk open, and ErrBusy otherwise. Before Linux 7.0, where the
// driver cannot tell, it looks through /proc for openers and asks for exclusive access, which
// leaves a small window.
func (d *Device) TryStop(ctx context.Context) error {
	if !d.running() {
		return nil
	}
	if d.flags.Has(FeatureSafeStop) {
		if err := d.ctl.tryStopDev(ctx, d.id); err != nil {
			return err
		}
		return d.wait(ctx, "stop device")
	}
	release, err := claim(d.Path())
	if err != nil {
		return fmt.Errorf("ublk%d: stop unused device: %w", d.id, err)
	}
	release()
	return d.Stop(ctx)
}

// Quiesce hands the device over: the queues finish what they have, end, and leave the disk waiting
// for a new server, which calls Recover. timeout bounds how long the driver waits for each queue to
// have an idle tag. A failed Quiesce is one-way: I/O waits, and it can only be tried again, or the
// process must end so that another can recover. Needs recovery and Linux 6.16; before that, ending
// the process is the way.
func (d *Device) Quiesce(ctx context.Context, timeout time.Duration) error {
	if !d.running() {
		return fmt.Errorf("ublk%d: quiesce: %w", d.id, ErrStopped)
	}
	if d.opts.Recovery == RecoveryNone {
		return fmt.Errorf("ublk%d: quiesce: %w", d.id, ErrNotRecoverable)
	}
	if err := d.flags.require(FeatureQuiesce); err != nil {
		return err
	}
	if err := d.ctl.quiesceDev(ctx, d.id, timeout); err != nil {
		return err
	}
	for _, q := range d.queues {
		q.quiesced.Store(true)
		q.Wake()
	}
	return d.wait(ctx, "quiesce device")
}

// UpdateSize changes the size of a live disk.
func (d *Device) UpdateSize(bytes uint64) error {
	if err := d.flags.require(FeatureUpdateSize); err != nil {
		return err
	}
	if bytes == 0 || bytes%uint64(d.opts.Params.LogicalBlockBytes) != 0 {
		return fmt.Errorf("ublk%d: update size: %d bytes is no multiple of the block size", d.id,
			bytes)
	}
	return d.ctl.updateSize(d.id, bytes>>9)
}

// RegisterShared lets requests whose memory lies in mem, pages that a client shares with this
// process, arrive without a copy (flag InShared). It returns the index that Request.Shared reports.
// The driver holds back all I/O until what is in flight is done. The registration outlives the
// server.
func (d *Device) RegisterShared(ctx context.Context, mem []byte, readOnly bool) (int, error) {
	if err := d.flags.require(FeatureSharedMemory); err != nil {
		return 0, err
	}
	return d.ctl.registerShared(ctx, d.id, mem, readOnly)
}

// UnregisterShared takes memory back.
func (d *Device) UnregisterShared(ctx context.Context, index int) error {
	return d.ctl.unregisterShared(ctx, d.id, index)
}

// Delete stops the device if it runs and removes it from the kernel. I/O that waits for a new
// server fails. As long as somebody has the disk open or mounted, the removal is not complete and
// the number stays taken: Delete waits for them until ctx ends and then returns ErrBusy; the kernel
// completes the removal by itself.
func (d *Device) Delete(ctx context.Context) error {
	if err := d.Stop(ctx); err != nil && d.running() {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.deleted {
		return nil
	}
	err := d.ctl.delDev(ctx, d.id)
	if err == nil || errors.Is(err, ErrNotFound) {
		d.mu.deleted = true
		return nil
	}
	// A second DEL_DEV would be harmless as long as the number is not given to another device.
	d.mu.deleted = errors.Is(err, ErrBusy)
	return err
}
