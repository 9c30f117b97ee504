package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/extents"
	"ubcache/internal/report"
	"ubcache/ublk"
)

// settleTime bounds how long the last metadata may take.
const settleTime = 5 * time.Minute

// clientTime is how long a client that has ended may be taken for one that has not.
const clientTime = 3 * time.Second

// Stop ends the cache in order: devices, metadata, superblock. Devices that are in use make it
// refuse and change nothing, unless force is set; then their users see I/O errors.
func (in *Instance) Stop(ctx context.Context, force bool) error {
	in.changing.Lock()
	defer in.changing.Unlock()
	what := "stop cache " + in.opts.Name
	if in.isStopped() {
		return nil
	}
	if !force {
		for _, s := range in.list() {
			if by := in.stillUsedBy(s); by != "" {
				return report.Refuse(what, by, "unmount it first, or --force cuts it off")
			}
		}
	}
	if force {
		for _, s := range in.list() {
			in.renounce(s, true)
		}
	}
	var stopped []*served
	for _, s := range in.list() {
		if err := in.unserve(ctx, s, force); err != nil {
			err = report.Wrap(what, err, "close it first, or --force cuts it off")
			for _, s := range in.list() {
				in.renounce(s, false)
			}
			for _, s := range stopped {
				if e := in.serve(ctx, s); e != nil {
					err = errors.Join(err, fmt.Errorf("serve %s again: %w", s.name, e))
				}
			}
			return err
		}
		stopped = append(stopped, s)
	}
	if err := in.finish(ctx); err != nil {
		hint := "nothing is lost: the next start replays the journal"
		if in.isStopped() {
			hint = "the daemon has ended; " + hint
		}
		return report.Wrap(what, err, hint)
	}
	return nil
}

// stillUsedBy is usedBy for who does not go away by itself: a client that has ended is noticed a moment
// later.
func (in *Instance) stillUsedBy(s *served) string {
	return waitUnused(func() string { return in.usedBy(s) }, func() bool {
		d := in.directServer()
		return d != nil && d.users(s.b.ID()) != ""
	})
}

// waitUnused waits for clients to end, as long as that may take, and says who else, or still, is a user.
func waitUnused(usedBy func() string, clients func() bool) string {
	for end := time.Now().Add(clientTime); ; time.Sleep(5 * time.Millisecond) {
		wait := clients() && time.Now().Before(end) // asked first: who is named may end before the next question
		if by := usedBy(); by == "" || !wait {
			return by
		}
	}
}

// usedBy says where the block device is mounted or who has built on it, or has it open past the block
// device; empty if nobody.
func (in *Instance) usedBy(s *served) string {
	if d := in.directServer(); d != nil && s.b != nil {
		if by := d.users(s.b.ID()); by != "" {
			return by
		}
	}
	if s.ublk == nil {
		return ""
	}
	i, err := blockdev.Stat(s.ublk.Path())
	if err != nil {
		return ""
	}
	return i.Users()
}

// unserve takes the block device away; its requests are answered first.
func (in *Instance) unserve(ctx context.Context, s *served, force bool) error {
	d := s.ublk
	if d == nil {
		return nil
	}
	if !force {
		if err := in.stopUnused(ctx, d); err != nil {
			return err
		}
	}
	if err := d.Delete(ctx); err != nil {
		return err
	}
	closeLanes(s.queues)
	in.rules.serve(&s.rules, extents.Device{})
	in.mu.Lock()
	s.ublk, s.queues = nil, nil
	in.mu.Unlock()
	s.shared.end()
	in.untrackKernel(s)
	if s.link != "" {
		_ = os.Remove(s.link)
		s.link = ""
	}
	return nil
}

// stopUnused stops a device that nobody has open. Programs that look at every device, such as
// udev's, are given a moment.
func (in *Instance) stopUnused(ctx context.Context, d *ublk.Device) error {
	for deadline := time.Now().Add(attachWait); ; time.Sleep(50 * time.Millisecond) {
		err := d.TryStop(ctx)
		if !errors.Is(err, ublk.ErrBusy) {
			return err
		}
		if time.Now().Before(deadline) {
			continue
		}
		why := d.Path() + " is open"
		if i, e := blockdev.Stat(d.Path()); e == nil {
			if list := i.Openers(); len(list) > 0 {
				why += " in " + strings.Join(list, ", ")
			}
		}
		return report.Refuse("", why, "")
	}
}

// finish ends a cache without block devices, or with devices that are handed over.
func (in *Instance) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	if d := in.directServer(); d != nil {
		if err := d.stop(); err != nil {
			return fmt.Errorf("end the service of clients: %w", err)
		}
	}
	loss, lost := in.cache.Loss()
	if !lost {
		in.loseAbsent()
		err := in.cache.Settle(ctx)
		if loss, lost = in.cache.Loss(); err != nil && !lost {
			return fmt.Errorf("write metadata: %w", err)
		}
	}
	if lost {
		return in.finishWithoutSSD(loss)
	}
	in.recordIdentities()
	in.kill()
	in.stopGuards()
	in.using.Lock()
	defer in.using.Unlock()
	if err := in.bg.stop(); err != nil {
		return in.endUnclean(err)
	}
	in.bg.lane.Close()
	in.takePrints()
	if err := in.cache.Close(); err != nil {
		return in.endUnclean(fmt.Errorf("close cache: %w", err))
	}
	if sb, err := cache.ReadSuper(in.ssd); err == nil {
		if err := in.keepSuper(sb); err != nil {
			in.log.Error("the copy of the superblock in state-dir is out of date", "error", err)
		}
	}
	in.release()
	return nil
}

// endUnclean ends the instance, of which nothing works any more, as if it had been killed: the next start recovers.
func (in *Instance) endUnclean(err error) error {
	in.log.Error("not stopped in order: the next start replays the journal", "error", err)
	in.lost = true
	in.release()
	return err
}

// finishWithoutSSD ends a cache whose SSD is lost. Nothing can be written to it; what its journal lacks
// stays in the pending ring.
func (in *Instance) finishWithoutSSD(loss cache.Loss) error {
	in.log.Warn("stopped without the SSD", "why it is lost", loss.Why)
	in.kill()
	in.stopGuards()
	in.using.Lock()
	defer in.using.Unlock()
	if !loss.Busy { // else the end of the process is what ends its operations
		if err := in.bg.stop(); err != nil {
			return in.endUnclean(err)
		}
		in.bg.lane.Close()
		in.cache.Abandon()
	}
	in.lost = true
	in.release()
	return nil
}

// release gives everything back after Close, and ends the instance.
func (in *Instance) release() {
	clean := false
	if in.ssd != nil && !in.lost {
		if sb, err := cache.ReadSuper(in.ssd); err == nil {
			clean = sb.Clean
		}
	}
	in.pending.close(clean)
	for _, s := range in.list() {
		if s.dev != nil {
			_ = s.dev.Close()
		}
	}
	if in.ssd != nil {
		_ = in.ssd.Close()
	}
	if in.lock != nil {
		_ = os.Remove(in.lock.Name())
		_ = in.lock.Close()
	}
	in.end()
}

func (in *Instance) end() {
	in.mu.Lock()
	in.mu.stopped = true
	src := in.mu.bpf
	in.mu.bpf = nil
	in.mu.Unlock()
	if src != nil {
		_ = src.Close()
	}
	in.doneOnce.Do(func() {
		in.rules.close()
		close(in.done)
	})
}

func (in *Instance) isStopped() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.mu.stopped
}

// abandon undoes a start that failed. New block devices are removed, those of an earlier daemon
// go on waiting.
func (in *Instance) abandon() {
	ctx, cancel := context.WithTimeout(context.Background(), settleTime)
	defer cancel()
	for _, s := range in.list() {
		if s.ublk == nil {
			continue
		}
		if in.usedBy(s) == "" {
			_ = in.unserve(ctx, s, false)
		}
	}
	switch {
	case in.cache == nil:
		in.release()
	case in.bg == nil:
		in.kill()
		in.stopGuards()
		in.cache.Abandon()
		in.release()
	default:
		for _, s := range in.list() {
			if s.ublk != nil {
				// Its queues still use the engine: the end of the process is what stops them.
				return
			}
		}
		if err := in.finish(ctx); err != nil {
			in.log.Error("stop after a failed start", "error", err)
		}
	}
}

// quiesceTime bounds how long a queue may take to have an idle tag.
const quiesceTime = 10 * time.Second

// HandOver ends the daemon and leaves its block devices to the next one: their I/O waits. It is
// what SIGTERM does to devices that are in use. What was acknowledged is in the journal and in the
// pending ring, which the next start replays.
func (in *Instance) HandOver(ctx context.Context) error {
	in.changing.Lock()
	defer in.changing.Unlock()
	if in.isStopped() {
		return nil
	}
	for _, s := range in.list() {
		if s.guard != nil && s.b.Presence() == cache.Holding {
			// Requests that wait for a device would be waited for: the end of the process makes the
			// kernel issue them again.
			return in.cache.Sync(ctx)
		}
	}
	for _, s := range in.list() {
		if s.ublk == nil {
			continue
		}
		if !s.ublk.Features().Has(ublk.FeatureQuiesce) {
			// Before Linux 6.16 the end of the process is the hand-over; requests that are
			// under way are issued again.
			return in.cache.Sync(ctx)
		}
		s.shared.handOver()
		if err := s.ublk.Quiesce(ctx, quiesceTime); err != nil {
			return errors.Join(err, in.cache.Sync(ctx))
		}
		closeLanes(s.queues)
	}
	return in.finish(ctx)
}

// Terminate is what SIGTERM asks for: stop, or hand over what is in use.
func (in *Instance) Terminate(ctx context.Context) error {
	err := in.Stop(ctx, false)
	if report.CodeOf(err) != report.Refused && !errors.Is(err, ublk.ErrBusy) {
		return err
	}
	in.log.Warn("devices are in use: their I/O waits for the next daemon", "error", err)
	return in.HandOver(ctx)
}

// recordIdentities notes what is on the backing devices, to recognise them by at the next start:
// on those that have everything. Of the others it is not known what they will hold.
func (in *Instance) recordIdentities() {
	status := in.cache.Status()
	for _, st := range status.Backings {
		in.mu.Lock()
		s := in.mu.served[st.ID]
		in.mu.Unlock()
		r, err := in.recordOf(st.ID)
		if err != nil || s == nil || s.dev == nil {
			continue
		}
		id := r.Identity
		id.FSType, id.FSUUID = "", ""
		if st.DirtyBytes == 0 && st.PendingBytes == 0 && r.DataOff == 0 {
			if c, err := s.dev.Probe(); err == nil {
				id.FSType, id.FSUUID = c.Type, c.UUID
			}
		}
		if id != r.Identity {
			if err := in.cache.SetIdentity(st.ID, id); err != nil {
				in.log.Warn("identity of backing device not recorded", "name", s.name, "error", err)
			}
		}
	}
}
