package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/ublk/internal/sys"
)

// Device is a ublk device that this process serves or is about to serve.
type Device struct {
	ctl   *control
	id    int
	opts  Options
	info  sys.DevInfo
	flags Features

	recover bool // taken over from another server
	charFD  int
	live    atomic.Bool   // all tags are fetched
	done    chan struct{} // closed when all queues have ended and /dev/ublkcN is closed
	err     error         // of the queues; written before done is closed
	queues  []*Queue

	mu struct {
		sync.Mutex
		started bool
		deleted bool
	}
}

// Probe returns what the running kernel's driver supports.
func Probe() (Features, error) {
	c, err := openControl()
	if err != nil {
		return 0, err
	}
	return c.features()
}

// Create makes a device in the kernel. It has no disk before Start. The result's Options tell what
// the driver has made of queues and sizes.
func Create(o Options) (*Device, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	c, err := openControl()
	if err != nil {
		return nil, err
	}
	have, err := c.features()
	if err != nil {
		return nil, err
	}
	if err := have.require(o.flags()); err != nil {
		return nil, err
	}
	info := sys.DevInfo{
		NrHWQueues:    uint16(o.Queues),
		QueueDepth:    uint16(o.Depth),
		MaxIOBufBytes: uint32(o.MaxIOBytes),
		DevID:         uint32(o.ID),
		SrvPID:        int32(unix.Getpid()),
		Flags:         uint64(o.flags() | o.optional()&have),
		SrvFlags:      o.Tag,
	}
	if err := c.addDev(context.Background(), &info); err != nil {
		return nil, err
	}
	d := newDevice(c, o, info)
	// The driver drops flags that it does not know without a word.
	err = d.flags.require(o.flags())
	if err == nil {
		err = d.setParams()
	}
	if err != nil {
		return nil, errors.Join(err, d.Delete(context.Background()))
	}
	return d, nil
}

func newDevice(c *control, o Options, info sys.DevInfo) *Device {
	o.ID, o.Queues = int(info.DevID), int(info.NrHWQueues)
	o.Depth, o.MaxIOBytes = int(info.QueueDepth), int(info.MaxIOBufBytes)
	return &Device{
		ctl: c, id: o.ID, opts: o, info: info, flags: Features(info.Flags), charFD: -1,
		done: make(chan struct{}),
	}
}

func (d *Device) setParams() error {
	p := kernelParams(&d.opts.Params, d.info.MaxIOBufBytes)
	want := p.Types
	if err := d.ctl.setParams(d.id, &p); err != nil {
		return err
	}
	got, err := d.ctl.getParams(d.id)
	if err != nil {
		return err
	}
	switch missing := want &^ got.Types; {
	case missing == 0:
		return nil
	case missing&(sys.ParamDMAAlign|sys.ParamSegment) != 0:
		return &UnsupportedError{Feature: "DMA alignment and segment limits", NeedsLinux: "6.15"}
	case missing&sys.ParamIntegrity != 0:
		return &UnsupportedError{Feature: "INTEGRITY", NeedsLinux: "7.0"}
	default:
		return &UnsupportedError{Feature: fmt.Sprintf("parameter types %#x", missing)}
	}
}

// Recover takes over device id from a server that has died or quiesced it. As long as the old
// server's last reference to the device exists, I/O of its rings included, it waits; ctx bounds
// that. Queues, Depth, MaxIOBytes, Mode, Recovery and Params come from the kernel, the rest from o;
// a device in mode AutoZeroCopy, which to the kernel is the same, is served
// in mode RingCopy unless o.Mode is AutoZeroCopy.
// The device serves again after Start, or can be given to Recover again if the process dies before.
func Recover(ctx context.Context, id int, o Options) (*Device, error) {
	c, err := openControl()
	if err != nil {
		return nil, err
	}
	info, err := c.devInfo(id)
	if err != nil {
		return nil, err
	}
	if !Features(info.Flags).Has(FeatureRecovery) {
		return nil, fmt.Errorf("ublk%d: start recovery: %w", id, ErrNotRecoverable)
	}
	params, err := c.getParams(id)
	if err != nil {
		return nil, err
	}
	if err := c.startRecovery(ctx, id); err != nil {
		return nil, err
	}
	if mode := modeOf(Features(info.Flags)); mode != AutoZeroCopy {
		o.Mode = mode
	} else if o.Mode != AutoZeroCopy {
		o.Mode = RingCopy
	}
	o.Recovery = recoveryOf(Features(info.Flags))
	o.Params = fromKernelParams(&params)
	o.Tag = info.SrvFlags
	o = o.withDefaults()
	d := newDevice(c, o, info)
	d.recover = true
	return d, nil
}

func modeOf(f Features) CopyMode {
	switch {
	case f.Has(FeatureAutoBuffers):
		return AutoZeroCopy
	case f.Has(FeatureUserCopy):
		return UserCopy
	}
	return Copy
}

func recoveryOf(f Features) Recovery {
	switch {
	case !f.Has(FeatureRecovery):
		return RecoveryNone
	case f.Has(FeatureRecoveryReissue):
		return RecoveryReissue
	case f.Has(FeatureRecoveryFailIO):
		return RecoveryFailIO
	}
	return RecoveryRequeue
}

// ID is the device's number.
func (d *Device) ID() int { return d.id }

// Options are the options in effect.
func (d *Device) Options() Options { return d.opts }

// Features are the driver features in effect for this device.
func (d *Device) Features() Features { return d.flags }

// Path is the block device, /dev/ublkbN.
func (d *Device) Path() string { return blockPath(d.id) }

// Queue returns queue i between Start and the device's end.
func (d *Device) Queue(i int) *Queue { return d.queues[i] }

// Done is closed when the queues of a started device have ended, whoever stopped it.
func (d *Device) Done() <-chan struct{} { return d.done }

// Err is what went wrong in the queues. It is nil before Done.
func (d *Device) Err() error {
	select {
	case <-d.done:
		return d.err
	default:
		return nil
	}
}

func blockPath(id int) string { return "/dev/ublkb" + strconv.Itoa(id) }
func charPath(id int) string  { return "/dev/ublkc" + strconv.Itoa(id) }

func (d *Device) onError(err error) {
	if f := d.opts.OnError; f != nil {
		f(err)
		return
	}
	fmt.Fprintln(os.Stderr, err)
}

func (d *Device) onFatal(err error) {
	if f := d.opts.OnFatal; f != nil {
		f(err)
		return
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(70)
}

// openChar opens /dev/ublkcN. The node may not exist yet (devtmpfs, udev), and udev may hold it for
// a moment: only one open is allowed at a time.
func openChar(ctx context.Context, id int) (int, error) {
	for {
		fd, err := unix.Open(charPath(id), unix.O_RDWR|unix.O_CLOEXEC, 0)
		switch err {
		case nil:
			return fd, nil
		case unix.EINTR:
			continue
		case unix.EBUSY, unix.ENOENT, unix.ENXIO:
			if wait(ctx, 5*time.Millisecond) == nil {
				continue
			}
		}
		if err == unix.EBUSY {
			return -1, fmt.Errorf("open %s: %w: another server has it", charPath(id), ErrBusy)
		}
		return -1, fmt.Errorf("open %s: %w", charPath(id), err)
	}
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
