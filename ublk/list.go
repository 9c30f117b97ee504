package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ubcache/ublk/internal/sys"
)

// State is a device's state in the kernel.
type State uint16

// States.
const (
	StateDead     State = sys.StateDead     // not started yet, or stopped
	StateLive     State = sys.StateLive     // a server serves it
	StateQuiesced State = sys.StateQuiesced // no server; I/O waits for one
	StateFailIO   State = sys.StateFailIO   // no server; I/O fails until one comes
)

func (s State) String() string {
	switch s {
	case StateDead:
		return "dead"
	case StateLive:
		return "live"
	case StateQuiesced:
		return "quiesced"
	case StateFailIO:
		return "fail-io"
	}
	return fmt.Sprintf("state-%d", uint16(s))
}

// Info describes a device in the kernel.
type Info struct {
	ID         int
	State      State
	Queues     int
	Depth      int
	MaxIOBytes int
	PID        int // of the server; -1 if there is none
	Features   Features
	Tag        uint64 // Options.Tag of its maker
	UID, GID   int    // of its maker
	Params     Params
	CharDev    uint64 // device number of /dev/ublkcN
	BlockDev   uint64 // device number of /dev/ublkbN; 0 if there is no disk
}

// Mode is how the device's server reaches request data.
func (i *Info) Mode() CopyMode { return modeOf(i.Features) }

// Recovery is what happens when the device's server dies.
func (i *Info) Recovery() Recovery { return recoveryOf(i.Features) }

// Path is the block device.
func (i *Info) Path() string { return blockPath(i.ID) }

// Lookup describes the device with a number. The error is ErrNotFound if there is none.
func Lookup(id int) (*Info, error) {
	c, err := openControl()
	if err != nil {
		return nil, err
	}
	return c.lookup(id)
}

// Info describes the device as the kernel sees it now.
func (d *Device) Info() (*Info, error) { return d.ctl.lookup(d.id) }

func (c *control) lookup(id int) (*Info, error) {
	info, err := c.devInfo(id)
	if err != nil {
		return nil, err
	}
	i := &Info{
		ID: int(info.DevID), State: State(info.State), Queues: int(info.NrHWQueues),
		Depth: int(info.QueueDepth), MaxIOBytes: int(info.MaxIOBufBytes), PID: int(info.SrvPID),
		Features: Features(info.Flags), Tag: info.SrvFlags,
		UID: int(info.OwnerUID), GID: int(info.OwnerGID),
	}
	p, err := c.getParams(id)
	if err != nil {
		return nil, err
	}
	if p.Types&sys.ParamBasic != 0 {
		i.Params = fromKernelParams(&p)
	}
	i.CharDev = unix.Mkdev(p.Devt.CharMajor, p.Devt.CharMinor)
	if p.Devt.DiskMajor != 0 || p.Devt.DiskMinor != 0 {
		i.BlockDev = unix.Mkdev(p.Devt.DiskMajor, p.Devt.DiskMinor)
	}
	return i, nil
}

// List describes all devices, in order of their numbers.
func List() ([]*Info, error) {
	c, err := openControl()
	if err != nil {
		return nil, err
	}
	ids, err := deviceIDs()
	if err != nil {
		return nil, err
	}
	var list []*Info
	for _, id := range ids {
		i, err := c.lookup(id)
		if errors.Is(err, ErrNotFound) {
			continue // it went away meanwhile
		}
		if err != nil {
			return nil, err
		}
		list = append(list, i)
	}
	return list, nil
}

// deviceIDs looks into /sys/class/ublk-char, where the driver registers each device.
func deviceIDs() ([]int, error) {
	names, err := filepath.Glob("/sys/class/ublk-char/ublkc*")
	if err != nil {
		return nil, err
	}
	var ids []int
	for _, n := range names {
		id, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(n), "ublkc"))
		if err == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// StopID stops a device that some process serves, or that has no server.
func StopID(ctx context.Context, id int) error {
	c, err := openControl()
	if err != nil {
		return err
	}
	return c.stopDev(ctx, id)
}

// DeleteID stops and removes a device, whoever serves it. It waits until its server has let go of
// it.
func DeleteID(ctx context.Context, id int) error {
	c, err := openControl()
	if err != nil {
		return err
	}
	if err := c.stopDev(ctx, id); err != nil {
		return err
	}
	return c.delDev(ctx, id)
}

// claim checks that nobody has the block device open and holds it exclusively until release is
// called. O_EXCL shuts out mounts, swap and device-mapper only, so that ordinary openers are looked
// for in /proc.
func claim(path string) (release func(), err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err == unix.EBUSY {
		return nil, fmt.Errorf("%s: %w", path, ErrBusy)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	release = func() { _ = unix.Close(fd) }
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		release()
		return nil, fmt.Errorf("stat %s: %w", path, err)
	}
	if pid := opener(st.Rdev, fd); pid != 0 {
		release()
		return nil, fmt.Errorf("%s: %w by process %d", path, ErrBusy, pid)
	}
	return release, nil
}

// opener finds a process that has the block device open, other than through our own descriptor.
func opener(rdev uint64, own int) int {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	mine := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), own)
	for _, l := range links {
		if l == mine {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(l, &st) != nil || st.Rdev != rdev || st.Mode&unix.S_IFMT != unix.S_IFBLK {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(l, "/")[2])
		return pid
	}
	return 0
}
