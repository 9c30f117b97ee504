package ublk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/internal/uring"
	"ubcache/ublk/internal/sys"
)

// The driver's control commands, one function each.

func (c *control) features() (Features, error) {
	var f uint64
	err := c.quick("get features", sys.CmdGetFeatures, -1, 0, nil, sys.Bytes(&f))
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV) {
		return 0, &UnsupportedError{Feature: "GET_FEATURES", NeedsLinux: "6.5"}
	}
	return Features(f), err
}

// addDev creates the device that info asks for and updates info to what the driver made of it.
func (c *control) addDev(ctx context.Context, info *sys.DevInfo) error {
	if c.lost.Load() {
		return lostError("add device", -1, 0)
	}
	if err := c.lockAddDel(ctx); err != nil {
		return err
	}
	defer c.unlockAddDel()
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	_, err := c.do(ctx, "add device", sys.CmdAddDev, int(int32(info.DevID)), 0,
		sys.Bytes(info), sys.Bytes(info))
	c.noteLost(err)
	return err
}

// delDev deletes a device and waits until it is gone: until every reference is, those of processes
// that have the disk open included. DEL_DEV would wait in the driver, where no deadline reaches it.
func (c *control) delDev(ctx context.Context, id int) error {
	if err := c.lockAddDel(ctx); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, commandTimeout)
	_, err := c.do(limited, "delete device", sys.CmdDelDevAsync, id, 0, nil, nil)
	cancel()
	c.noteLost(err)
	c.unlockAddDel()
	if err != nil {
		return err
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		info, err := c.devInfo(id)
		if errors.Is(err, ErrNotFound) || err == nil && info.State != sys.StateDead {
			return nil // gone, or the number has a new owner already
		}
		if err != nil {
			return err
		}
		if wait(ctx, pause) != nil {
			return fmt.Errorf("ublk%d: delete device: %w: it goes away when the last opener "+
				"closes or unmounts it", id, ErrBusy)
		}
	}
}

func (c *control) lockAddDel(ctx context.Context) error {
	select {
	case <-c.addDel:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *control) unlockAddDel() { c.addDel <- struct{}{} }

func (c *control) noteLost(err error) {
	if errors.Is(err, ErrLost) {
		c.lost.Store(true)
	}
}

func (c *control) devInfo(id int) (sys.DevInfo, error) {
	var info sys.DevInfo
	err := c.quick("get info", sys.CmdGetDevInfo, id, 0, nil, sys.Bytes(&info))
	return info, err
}

func (c *control) setParams(id int, p *sys.Params) error {
	return c.quick("set parameters", sys.CmdSetParams, id, 0, sys.Bytes(p), nil)
}

func (c *control) getParams(id int) (sys.Params, error) {
	var p sys.Params
	p.Len = uint32(len(sys.Bytes(&p)))
	err := c.quick("get parameters", sys.CmdGetParams, id, 0, sys.Bytes(&p), sys.Bytes(&p))
	return p, err
}

// queueAffinity returns the CPUs that submit to a queue. The queue's number goes into data[0].
func (c *control) queueAffinity(id, queue int) (unix.CPUSet, error) {
	var set unix.CPUSet
	err := c.quick("get queue affinity", sys.CmdGetQueueAffinity, id, uint64(queue), nil,
		sys.Bytes(&set))
	return set, err
}

// startDev makes the disk. It waits until all tags of all queues have been fetched.
func (c *control) startDev(ctx context.Context, id int) error {
	_, err := c.do(ctx, "start device", sys.CmdStartDev, id, uint64(unix.Getpid()), nil, nil)
	return err
}

func (c *control) stopDev(ctx context.Context, id int) error {
	_, err := c.do(ctx, "stop device", sys.CmdStopDev, id, 0, nil, nil)
	return err
}

func (c *control) tryStopDev(ctx context.Context, id int) error {
	_, err := c.do(ctx, "stop unused device", sys.CmdTryStopDev, id, 0, nil, nil)
	return err
}

// startRecovery asks for a device whose server is gone. The driver answers EBUSY as long as the old
// server's last reference to /dev/ublkcN exists, so this tries until ctx ends.
func (c *control) startRecovery(ctx context.Context, id int) error {
	for {
		// The driver answers at once; ctx bounds the tries, not one that has just begun.
		err := c.quick("start recovery", sys.CmdStartUserRecovery, id, 0, nil, nil)
		if errors.Is(err, unix.EINVAL) {
			// Linux 6.12 says so, too, if an earlier server began a recovery and did not end
			// it. Then there is nothing to begin.
			info, e := c.devInfo(id)
			if e == nil && (info.State == sys.StateQuiesced || info.State == sys.StateFailIO) {
				return nil
			}
		}
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (c *control) endRecovery(ctx context.Context, id int) error {
	_, err := c.do(ctx, "end recovery", sys.CmdEndUserRecovery, id, uint64(unix.Getpid()), nil, nil)
	return err
}

// quiesceDev lets the driver wait up to timeout until each queue has an idle tag, and then end the
// queues' fetches.
func (c *control) quiesceDev(ctx context.Context, id int, timeout time.Duration) error {
	ms := max(1, uint64(timeout.Milliseconds()))
	_, err := c.do(ctx, "quiesce device", sys.CmdQuiesceDev, id, ms, nil, nil)
	return err
}

func (c *control) updateSize(id int, sectors uint64) error {
	return c.quick("update size", sys.CmdUpdateSize, id, sectors, nil, nil)
}

// registerShared pins mem. That can take long, and waits for all I/O of the device.
func (c *control) registerShared(ctx context.Context, id int, mem []byte, readOnly bool) (int,
	error,
) {
	reg := sys.ShmemBufReg{Addr: uint64(uring.Addr(mem)), Len: uint64(len(mem))}
	if readOnly {
		reg.Flags = sys.ShmemReadOnly
	}
	idx, err := c.do(ctx, "register shared buffer", sys.CmdRegBuf, id, 0, sys.Bytes(&reg), nil)
	return int(idx), err
}

func (c *control) unregisterShared(ctx context.Context, id, index int) error {
	_, err := c.do(ctx, "unregister shared buffer", sys.CmdUnregBuf, id, uint64(index), nil, nil)
	return err
}
