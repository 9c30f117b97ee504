package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"ubcache/cache"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/report"
)

// setting is one thing that can be set of a backing device: how it is read from and written as
// text.
type setting struct {
	name string
	set  func(v string, m *cache.Mode, t *cache.Tunables) error
	get  func(m cache.Mode, t *cache.Tunables) string
}

// settingTable has them in the order in which they are shown.
var settingTable = []setting{
	{
		"mode", func(v string, m *cache.Mode, _ *cache.Tunables) (err error) {
			*m, err = cache.ParseMode(v)
			return err
		},
		func(m cache.Mode, _ *cache.Tunables) string { return m.String() },
	},
	{
		"sequential-cutoff", func(v string, _ *cache.Mode, t *cache.Tunables) error {
			n, err := config.ParseSize(v)
			t.SequentialCutoff = int64(n)
			return err
		},
		func(_ cache.Mode, t *cache.Tunables) string { return config.Size(t.SequentialCutoff).String() },
	},
	{
		"dirty-target", func(v string, _ *cache.Mode, t *cache.Tunables) (err error) {
			t.DirtyTarget, err = percent(v)
			return err
		},
		func(_ cache.Mode, t *cache.Tunables) string { return strconv.Itoa(t.DirtyTarget) },
	},
	{
		"dirty-max", func(v string, _ *cache.Mode, t *cache.Tunables) (err error) {
			t.DirtyMax, err = percent(v)
			return err
		},
		func(_ cache.Mode, t *cache.Tunables) string { return strconv.Itoa(t.DirtyMax) },
	},
	{
		"writeback-delay", func(v string, _ *cache.Mode, t *cache.Tunables) (err error) {
			t.WritebackDelay, err = time.ParseDuration(v)
			return err
		},
		func(_ cache.Mode, t *cache.Tunables) string {
			b, _ := config.Duration(t.WritebackDelay).MarshalText()
			return string(b)
		},
	},
	{
		"pin-quota", func(v string, _ *cache.Mode, t *cache.Tunables) (err error) {
			t.PinQuota, err = percent(v)
			return err
		},
		func(_ cache.Mode, t *cache.Tunables) string { return strconv.Itoa(t.PinQuota) },
	},
	{
		"ordered", func(v string, _ *cache.Mode, t *cache.Tunables) error {
			if t.Ordered = v == "on"; !t.Ordered && v != "off" {
				return fmt.Errorf("%q is neither on nor off", v)
			}
			return nil
		},
		func(_ cache.Mode, t *cache.Tunables) string {
			if t.Ordered {
				return "on"
			}
			return "off"
		},
	},
	{
		"ordered-age", func(v string, _ *cache.Mode, t *cache.Tunables) (err error) {
			t.OrderedAge, err = time.ParseDuration(v)
			return err
		},
		func(_ cache.Mode, t *cache.Tunables) string {
			b, _ := config.Duration(t.OrderedAge).MarshalText()
			return string(b)
		},
	},
	{
		"ordered-max", func(v string, _ *cache.Mode, t *cache.Tunables) error {
			n, err := config.ParseSize(v)
			t.OrderedMax = int64(n)
			return err
		},
		func(_ cache.Mode, t *cache.Tunables) string { return config.Size(t.OrderedMax).String() },
	},
	{
		"backing-loss", func(v string, _ *cache.Mode, t *cache.Tunables) (err error) {
			t.BackingHold, err = parseLoss(v)
			return err
		},
		func(_ cache.Mode, t *cache.Tunables) string { return showLoss(t.BackingHold) },
	},
	{
		"ssd-loss", func(v string, _ *cache.Mode, t *cache.Tunables) (err error) {
			t.Loss.Kind, err = cache.ParseLossKind(v)
			return err
		},
		func(_ cache.Mode, t *cache.Tunables) string { return t.Loss.Kind.String() },
	},
	{
		"ssd-loss-hold", func(v string, _ *cache.Mode, t *cache.Tunables) (err error) {
			t.Loss.Hold, err = time.ParseDuration(v)
			return err
		},
		func(_ cache.Mode, t *cache.Tunables) string {
			b, _ := config.Duration(t.Loss.Hold).MarshalText()
			return string(b)
		},
	},
}

func percent(v string) (int, error) {
	n, err := strconv.Atoi(strings.TrimSuffix(v, "%"))
	if err != nil {
		return 0, fmt.Errorf("%q is not a percentage", v)
	}
	return n, nil
}

// SettingNames lists what can be set of a backing device.
func SettingNames() []string {
	var names []string
	for _, s := range settingTable {
		names = append(names, s.name)
	}
	return names
}

// CheckSettings reports the first fault of settings, without a cache.
func CheckSettings(settings map[string]string) error {
	m, t := cache.Writethrough, cache.DefaultTunables()
	return applySettings(settings, &m, &t)
}

// applySettings changes mode and tunables; nothing is changed if one setting is wrong.
func applySettings(settings map[string]string, m *cache.Mode, t *cache.Tunables) error {
	mode, tun := *m, *t
	for name, v := range settings {
		i := slices.IndexFunc(settingTable, func(s setting) bool { return s.name == name })
		if i < 0 {
			return report.Misuse("unknown setting %q (one of %s)", name,
				strings.Join(SettingNames(), ", "))
		}
		if err := settingTable[i].set(v, &mode, &tun); err != nil {
			return report.Misuse("%s: %v", name, err)
		}
	}
	if err := tun.Validate(); err != nil {
		return report.Misuse("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	*m, *t = mode, tun
	return nil
}

func putSettings(b *config.Backing, m cache.Mode, t cache.Tunables) {
	b.Mode, b.SequentialCutoff = m.String(), config.Size(t.SequentialCutoff)
	b.DirtyTarget, b.DirtyMax = t.DirtyTarget, t.DirtyMax
	b.WritebackDelay = config.Duration(t.WritebackDelay)
	std := cache.DefaultTunables()
	if b.PinQuota = nil; t.PinQuota != std.PinQuota {
		b.PinQuota = &t.PinQuota
	}
	b.Ordered, b.OrderedAge, b.OrderedMax = t.Ordered, 0, 0
	if t.OrderedAge != std.OrderedAge {
		b.OrderedAge = config.Duration(t.OrderedAge)
	}
	if t.OrderedMax != std.OrderedMax {
		b.OrderedMax = config.Size(t.OrderedMax)
	}
	if b.BackingLoss = ""; t.BackingHold != std.BackingHold {
		b.BackingLoss = showLoss(t.BackingHold)
	}
	def := cache.DefaultTunables().Loss
	if b.SSDLoss = ""; t.Loss.Kind != def.Kind {
		b.SSDLoss = t.Loss.Kind.String()
	}
	if b.SSDLossHold = nil; t.Loss.Hold != def.Hold {
		hold := config.Duration(t.Loss.Hold)
		b.SSDLossHold = &hold
	}
}

func showSettings(m cache.Mode, t cache.Tunables) map[string]string {
	all := map[string]string{}
	for _, s := range settingTable {
		all[s.name] = s.get(m, &t)
	}
	return all
}

// set changes settings of a backing device, in the cache and in the configuration.
func (in *Instance) set(_ context.Context, a control.SetArgs, _ control.ProgressFunc) (
	any, error,
) {
	if err := in.change(); err != nil {
		return nil, err
	}
	defer in.changing.Unlock()
	s, err := in.find(a.Name)
	if err != nil {
		return nil, err
	}
	r, err := in.recordOf(s.b.ID())
	if err != nil {
		return nil, err
	}
	mode, tun := r.Mode, r.Tunables
	if err := applySettings(a.Settings, &mode, &tun); err != nil {
		return nil, err
	}
	change := func(m cache.Mode, t cache.Tunables) error {
		err := in.cache.SetTunables(s.b.ID(), t) // can be refused; the mode is left alone then
		if err == nil {
			err = in.cache.SetMode(s.b.ID(), m)
		}
		return err
	}
	defer in.keepSuperNow() // not before the settings are what they will be
	if err := change(mode, tun); err != nil {
		_ = in.cache.SetTunables(s.b.ID(), r.Tunables) // else the SSD has failed, and the next start follows the configuration
		return nil, report.Wrap("set "+a.Name, err, "")
	}
	err = config.Edit(in.opts.ConfigPath, func(f *config.File) error {
		c := f.Caches[in.opts.Name]
		if c == nil || c.Backings[s.name] == nil {
			return report.Fail("write configuration", s.name+" is not in it", "")
		}
		putSettings(c.Backings[s.name], mode, tun)
		return nil
	})
	if err != nil {
		return nil, errors.Join(report.Wrap("set "+a.Name, err, ""), change(r.Mode, r.Tunables))
	}
	d, _ := in.device(uint16(s.b.ID()))
	return d, nil
}

// CheckSettingNames reports settings that do not exist.
func CheckSettingNames(settings map[string]string) error {
	for name := range settings {
		if !slices.Contains(SettingNames(), name) {
			return report.Misuse("unknown setting %q (one of %s)", name,
				strings.Join(SettingNames(), ", "))
		}
	}
	return nil
}
