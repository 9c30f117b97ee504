package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/header"
	"ubcache/internal/report"
)

// findSSD finds the device of the cache: where the configuration says, or, if another device is
// there by now, wherever its UUID is.
func (in *Instance) findSSD() (*blockdev.Info, error) {
	i, err := blockdev.Inspect(in.conf.Device)
	if err == nil && i.Content.Type == blockdev.TypeCache && i.Content.UUID == in.conf.UUID {
		return i, nil
	}
	for _, path := range blockdev.All() {
		o, oerr := blockdev.Inspect(path)
		if oerr != nil || o.Content.Type != blockdev.TypeCache || o.Content.UUID != in.conf.UUID {
			continue
		}
		// What lies below a device-mapper device or the like holds the same, and is not to be used.
		if o.Users() == "" {
			return o, nil
		}
	}
	if err != nil {
		return nil, err
	}
	hint := "check the device, or correct the configuration"
	if i.Content.Type == "" {
		hint += "; if it is the right one, ubcache check tells what is left, and ubcache salvage saves it"
	}
	return nil, report.Refuse("open cache on "+in.conf.Device, fmt.Sprintf(
		"there is %s instead of cache %s", i.Content, in.conf.UUID), hint)
}

// openBackings opens what the superblock and the configuration agree on. A device that is missing
// does not keep the others from being served: its dirty data stays on the SSD.
func (in *Instance) openBackings(ctx context.Context, sb *cache.Superblock) error {
	records := map[string]*cache.BackingRecord{}
	for i := range sb.Backings {
		r := &sb.Backings[i]
		records[r.UUID.String()] = r
	}
	for _, name := range in.conf.BackingNames() {
		b := in.conf.Backings[name]
		r := records[b.UUID]
		if r == nil { // for instance a detach that a crash cut short
			in.log.Warn("the cache has no such backing device; it is not served, and a detach takes it from the configuration",
				"name", name, "uuid", b.UUID)
			continue
		}
		delete(records, b.UUID)
		s := &served{name: name}
		in.mu.served[r.ID] = s
		dev, err := in.openBacking(ctx, b, r, sb, nil)
		if err != nil {
			if report.CodeOf(err) == report.Refused || !isMissing(err) {
				return report.Wrap("open backing device "+name, err, "")
			}
			s.problem = err.Error()
			in.log.Error("backing device is missing; its data on the SSD is kept", "name", name,
				"error", err)
		}
		s.dev = dev
		if err := in.checkMissed(name, r, sb, dev); err != nil {
			return err
		}
		in.doubtOld(name, r.UUID)
	}
	for _, r := range records {
		in.log.Warn("the cache has a backing device that the configuration does not name; a detach gives it up",
			"name", r.Name, "uuid", r.UUID)
		in.mu.served[r.ID] = &served{name: r.Name, problem: "not in the configuration"}
		if err := in.checkMissed(r.Name, r, sb, nil); err != nil {
			return err
		}
		in.doubtOld(r.Name, r.UUID)
	}
	return nil
}

// isMissing reports whether an error says that a device is not there, by name or by what it answers.
func isMissing(err error) bool {
	for _, e := range []error{os.ErrNotExist, unix.EIO, unix.ENXIO, unix.ENODEV, unix.ENOMEDIUM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// openBacking finds, checks and opens one backing device; old is what it was opened as before, if it is
// gone.
func (in *Instance) openBacking(ctx context.Context, b *config.Backing, r *cache.BackingRecord,
	sb *cache.Superblock, old *blockdev.Device,
) (*blockdev.Device, error) {
	i, err := in.inspectUnless(old, b.Device)
	if err == nil {
		err = checkIdentity(i, r)
	}
	if err != nil {
		if other := findBacking(r, old); other != nil {
			in.log.Warn("backing device has another name than in the configuration", "configured",
				b.Device, "found", other.Path)
			i, err = other, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return in.openChecked(ctx, i, r, sb)
}

// inspectUnless is blockdev.Inspect, but of a device that is not old, which is gone: that is not asked for
// its data again and again.
func (in *Instance) inspectUnless(old *blockdev.Device, path string) (*blockdev.Info, error) {
	if old != nil {
		if i, err := blockdev.Stat(path); err == nil && old.Is(i) {
			return nil, fmt.Errorf("%s is still gone", path)
		}
	}
	return blockdev.Inspect(path)
}

// openChecked opens a device whose identity is the recorded one, as far as can be seen from outside.
func (in *Instance) openChecked(ctx context.Context, i *blockdev.Info, r *cache.BackingRecord,
	sb *cache.Superblock,
) (*blockdev.Device, error) {
	if i.LogicalBytes > int(r.LBS) {
		return nil, report.Refuse("", fmt.Sprintf("%s has sectors of %d bytes, it had %d when it "+
			"was attached", i.Path, i.LogicalBytes, r.LBS), "")
	}
	d, err := in.openPatiently(ctx, i)
	if err != nil {
		return nil, err
	}
	if err := checkHeader(d, r, sb.UUID); err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

// checkIdentity compares a device with what was recorded of it, as far as that can be seen from outside. Another
// filesystem makes no other device of it: see usedRaw.
func checkIdentity(i *blockdev.Info, r *cache.BackingRecord) error {
	want := r.Identity
	refuse := func(format string, args ...any) error {
		return &report.Error{
			Code: report.Refused, What: "",
			Why:  i.Path + " is not the backing device " + r.Name + ": " + fmt.Sprintf(format, args...),
			Hint: "correct the device in the configuration",
		}
	}
	switch {
	case i.SizeBytes != want.Size:
		return refuse("it has %d bytes instead of %d", i.SizeBytes, want.Size)
	case want.Serial != "" && i.Serial != "" && i.Serial != want.Serial:
		return refuse("its serial number is %s instead of %s", i.Serial, want.Serial)
	}
	return nil
}

// findBacking looks for the device among all but old: by its serial number, or by its header.
func findBacking(r *cache.BackingRecord, old *blockdev.Device) *blockdev.Info {
	for _, path := range blockdev.All() {
		if i, err := blockdev.Stat(path); err != nil || old != nil && old.Is(i) {
			continue
		}
		i, err := blockdev.Inspect(path)
		if err != nil || checkIdentity(i, r) != nil {
			continue
		}
		byHeader := i.Content.Type == blockdev.TypeHeader && i.Content.UUID == r.UUID.String()
		bySerial := r.DataOff == 0 && r.Identity.Serial != "" && i.Serial == r.Identity.Serial
		if byHeader || bySerial {
			return i
		}
	}
	return nil
}

// checkHeader makes sure that a header, where there should be one, names this cache.
func checkHeader(d *blockdev.Device, r *cache.BackingRecord, cacheID cache.UUID) error {
	if r.DataOff == 0 {
		return nil
	}
	h, err := header.Read(d)
	if err != nil {
		return report.Refuse("", fmt.Sprintf("%s: %v", d.Info.Path, err),
			"it may be another device; its data is left alone")
	}
	if h.Cache != cacheID || h.Backing != r.UUID || h.DataOff != r.DataOff || h.Size != r.Size {
		return report.Refuse("", fmt.Sprintf("%s belongs to cache %s as backing device %s",
			d.Info.Path, h.Cache, h.Backing), "correct the device in the configuration")
	}
	return nil
}

// applyConfig makes the engine follow the configuration, and tells it what the devices can do.
func (in *Instance) applyConfig() error {
	for _, r := range in.cache.Super().Backings {
		s := in.mu.served[r.ID]
		b, err := in.cache.Backing(r.ID)
		if err != nil {
			return err
		}
		s.b = b
		b.SetNumber(ownNumber(r.UUID))
		if s.dev != nil {
			setAbilities(b, s.dev)
		}
		conf := in.conf.Backings[s.name]
		if conf == nil {
			continue
		}
		if err := in.rules.load(&s.rules, b.Size(), conf.Rules); err != nil {
			return report.Wrap("configure "+s.name, err, "correct "+in.opts.ConfigPath)
		}
		mode, tun, err := settingsOf(conf)
		if err != nil {
			return report.Wrap("configure "+s.name, err, "correct "+in.opts.ConfigPath)
		}
		if mode != r.Mode {
			if err := in.cache.SetMode(r.ID, mode); err != nil {
				return report.Wrap("set mode of "+s.name, err, "")
			}
		}
		if tun != r.Tunables {
			if err := in.cache.SetTunables(r.ID, tun); err != nil {
				return report.Wrap("configure "+s.name, err, "correct "+in.opts.ConfigPath)
			}
		}
	}
	in.tenants.load(in.cache, in.conf.Tenants, in.log)
	return nil
}

// setAbilities: a block device always takes write zeroes, since the kernel writes them if the
// device cannot.
func setAbilities(b *cache.Backing, d *blockdev.Device) {
	punch := d.CanPunch()
	b.SetAbilities(d.Info.Block && d.Info.Discard || punch, d.Info.Block || punch)
}

func settingsOf(c *config.Backing) (cache.Mode, cache.Tunables, error) {
	mode, err := cache.ParseMode(c.Mode)
	if err != nil {
		return 0, cache.Tunables{}, err
	}
	std := cache.DefaultTunables()
	t := cache.Tunables{
		SequentialCutoff: int64(c.SequentialCutoff), DirtyTarget: c.DirtyTarget,
		DirtyMax: c.DirtyMax, WritebackDelay: time.Duration(c.WritebackDelay),
		PinQuota: std.PinQuota, Loss: std.Loss, Ordered: c.Ordered,
		OrderedAge:  cmp.Or(time.Duration(c.OrderedAge), std.OrderedAge),
		OrderedMax:  cmp.Or(int64(c.OrderedMax), std.OrderedMax),
		BackingHold: std.BackingHold,
	}
	if c.SSDLoss != "" {
		if t.Loss.Kind, err = cache.ParseLossKind(c.SSDLoss); err != nil {
			return 0, t, fmt.Errorf("ssd-loss: %w", err)
		}
	}
	if c.SSDLossHold != nil {
		t.Loss.Hold = time.Duration(*c.SSDLossHold)
	}
	if c.BackingLoss != "" {
		if t.BackingHold, err = parseLoss(c.BackingLoss); err != nil {
			return 0, cache.Tunables{}, fmt.Errorf("backing-loss: %w", err)
		}
	}
	if c.PinQuota != nil {
		t.PinQuota = *c.PinQuota
	}
	return mode, t, t.Validate()
}

// linkDir is where each device has a link by its name.
const linkDir = "/dev/ubcache"

func makeLink(name, target string) (string, error) {
	if err := os.MkdirAll(linkDir, 0o755); err != nil {
		return "", err
	}
	link := filepath.Join(linkDir, name)
	tmp := link + ".new"
	_ = os.Remove(tmp)
	if err := os.Symlink(target, tmp); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, link); err != nil {
		_ = os.Remove(tmp)
		return "", err
	}
	return link, nil
}
