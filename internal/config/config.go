// Package config is the configuration file: which caches and backing devices there are, by names
// that survive a reboot, and how they are served. The superblock on the SSD is the truth about
// identity and format; this file is the truth about what to start and how.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"ubcache/internal/report"
)

// DefaultPath is where the file is unless --config says otherwise.
const DefaultPath = "/etc/ubcache.toml"

// File is the whole configuration.
type File struct {
	// RuntimeDir holds sockets and pending rings; it must be on tmpfs.
	RuntimeDir string `toml:"runtime-dir,omitempty"`
	// StateDir holds what has to outlive a reboot.
	StateDir string            `toml:"state-dir,omitempty"`
	Caches   map[string]*Cache `toml:"cache,omitempty"`

	path   string
	header string // the comment at the top
}

// Cache is one SSD.
type Cache struct {
	UUID   string `toml:"uuid"`
	Device string `toml:"device"`
	// Discard tells the SSD which buckets are free.
	Discard bool `toml:"discard,omitempty"`
	// Queues, Depth and MaxIO apply to the ublk devices; 0 means the default.
	Queues int    `toml:"queues,omitzero"`
	Depth  int    `toml:"depth,omitzero"`
	MaxIO  Size   `toml:"max-io,omitzero"`
	Copy   string `toml:"copy,omitempty"` // auto, copy, zero-copy
	// Scheduler is the I/O scheduler of the ublk devices, by the kernel's name; empty leaves it alone.
	Scheduler string `toml:"scheduler,omitempty"`
	// KernelAttributes says whether BPF reads priorities, hints and issuers off requests: auto, off.
	KernelAttributes string `toml:"kernel-attributes,omitempty"`

	// SSDStallLimit is how long an operation on the SSD may take until the cache does without it as far
	// as it can, SSDLossLimit after what time the SSD is given up: a duration, or off.
	SSDStallLimit string `toml:"ssd-stall-limit,omitempty"`
	SSDLossLimit  string `toml:"ssd-loss-limit,omitempty"`

	// Tenants are those whose cached data is limited.
	Tenants  []Tenant            `toml:"tenant,omitempty"`
	Backings map[string]*Backing `toml:"backing,omitempty"`
}

// Off switches something off that is otherwise done if it can be.
const Off = "off"

// Backing is one backing device of a cache.
type Backing struct {
	UUID   string `toml:"uuid"`
	Device string `toml:"device"`
	// UblkID fixes the number N of /dev/ublkbN.
	UblkID int `toml:"ublk-id"`
	// Integrity gives the block device integrity metadata.
	Integrity bool `toml:"integrity,omitempty"`

	Mode             string   `toml:"mode"`
	SequentialCutoff Size     `toml:"sequential-cutoff"`
	DirtyTarget      int      `toml:"dirty-target"`
	DirtyMax         int      `toml:"dirty-max"`
	WritebackDelay   Duration `toml:"writeback-delay"`
	// PinQuota is there only if it is not the default, 0 being a value.
	PinQuota *int `toml:"pin-quota,omitempty"`
	// SSDLoss and SSDLossHold are there only if they are not the defaults.
	SSDLoss     string    `toml:"ssd-loss,omitempty"`
	SSDLossHold *Duration `toml:"ssd-loss-hold,omitempty"`
	// Ordered makes writeback keep the device a consistent older image; the limits are there only
	// if they are not the defaults.
	Ordered    bool     `toml:"ordered,omitempty"`
	OrderedAge Duration `toml:"ordered-age,omitzero"`
	OrderedMax Size     `toml:"ordered-max,omitzero"`
	// BackingLoss says what becomes of I/O that needs the device when it is gone; empty for the default.
	BackingLoss string `toml:"backing-loss,omitempty"`

	// Rules give attributes to requests, the first one that matches wins.
	Rules []Rule `toml:"rule,omitempty"`
}

// Duration is written as text: "30s".
type Duration time.Duration

// MarshalText writes the duration without the zero units that Duration.String ends with.
func (d Duration) MarshalText() ([]byte, error) {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return []byte(s), nil
}

// UnmarshalText reads the duration.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// ParseLimit reads a limit of time: 0 if it is empty, for the default, and less than 0 if it is off.
func ParseLimit(s string) (time.Duration, error) {
	switch s {
	case "":
		return 0, nil
	case Off:
		return -1, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 100*time.Millisecond || d > 24*time.Hour {
		return 0, fmt.Errorf("%q is neither off nor a time from 100ms to 24h", s)
	}
	return d, nil
}

// Load reads the file. A file that does not exist is an empty one.
func Load(path string) (*File, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = nil, nil
	}
	if err != nil {
		return nil, report.Wrap("read configuration", err, "")
	}
	return parse(path, text)
}

func parse(path string, text []byte) (*File, error) {
	f := &File{path: path, header: leadingComment(string(text))}
	meta, err := toml.Decode(string(text), f)
	if err != nil {
		var pe toml.ParseError
		if errors.As(err, &pe) {
			return nil, report.Fail("read "+path, fmt.Sprintf("line %d: %s", pe.Position.Line,
				pe.Message), "correct the file")
		}
		return nil, report.Wrap("read "+path, err, "correct the file")
	}
	if keys := meta.Undecoded(); len(keys) > 0 {
		return nil, report.Fail("read "+path, fmt.Sprintf("unknown key %q", keys[0].String()),
			"correct the file, or use a newer ubcache")
	}
	if err := f.check(); err != nil {
		return nil, report.Wrap("read "+path, err, "correct the file")
	}
	return f, nil
}

// leadingComment is the comment lines at the start of the file; they survive a rewrite.
func leadingComment(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if t := strings.TrimSpace(line); t != "" && !strings.HasPrefix(t, "#") {
			break
		}
		b.WriteString(line)
	}
	return b.String()
}

// check reports the first thing that contradicts itself.
func (f *File) check() error {
	names, ids := map[string]string{}, map[int]string{}
	for _, cn := range f.CacheNames() {
		c := f.Caches[cn]
		if err := CheckName(cn); err != nil {
			return err
		}
		if c.Device == "" || c.UUID == "" {
			return fmt.Errorf("cache %s needs uuid and device", cn)
		}
		switch c.Copy {
		case "", "auto", "copy", "zero-copy":
		default:
			return fmt.Errorf("cache %s: copy = %q is none of auto, copy, zero-copy", cn, c.Copy)
		}
		switch c.Scheduler {
		case "", "none", "mq-deadline", "kyber", "bfq":
		default:
			return fmt.Errorf("cache %s: scheduler = %q is none of none, mq-deadline, kyber, bfq", cn,
				c.Scheduler)
		}
		switch c.KernelAttributes {
		case "", "auto", Off:
		default:
			return fmt.Errorf("cache %s: kernel-attributes = %q is none of auto, off", cn,
				c.KernelAttributes)
		}
		for key, v := range map[string]string{
			"ssd-stall-limit": c.SSDStallLimit, "ssd-loss-limit": c.SSDLossLimit,
		} {
			if _, err := ParseLimit(v); err != nil {
				return fmt.Errorf("cache %s: %s = %w", cn, key, err)
			}
		}
		if err := CheckTenants(c.Tenants); err != nil {
			return fmt.Errorf("cache %s: %w", cn, err)
		}
		for _, bn := range c.BackingNames() {
			b := c.Backings[bn]
			if err := CheckName(bn); err != nil {
				return err
			}
			if b.Device == "" || b.UUID == "" {
				return fmt.Errorf("backing device %s needs uuid and device", bn)
			}
			if other, ok := names[bn]; ok {
				return fmt.Errorf("backing device %s is in cache %s and in cache %s", bn, other, cn)
			}
			if other, ok := ids[b.UblkID]; ok {
				return fmt.Errorf("backing devices %s and %s have the same ublk-id %d", other, bn,
					b.UblkID)
			}
			names[bn], ids[b.UblkID] = cn, bn
			if err := CheckRules(b.Rules); err != nil {
				return fmt.Errorf("backing device %s: %w", bn, err)
			}
		}
	}
	return nil
}

// CheckName accepts what can be part of a path and of a line of text.
func CheckName(s string) error {
	if s == "" || len(s) > 63 {
		return fmt.Errorf("name %q must have 1 to 63 characters", s)
	}
	for i, r := range s {
		ok := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
			i > 0 && strings.ContainsRune("-_.", r)
		if !ok {
			return fmt.Errorf("name %q: letters, digits and - _ . only, a letter or digit first", s)
		}
	}
	return nil
}

// CacheNames lists the caches in order.
func (f *File) CacheNames() []string { return slices.Sorted(maps.Keys(f.Caches)) }

// BackingNames lists the backing devices in order.
func (c *Cache) BackingNames() []string { return slices.Sorted(maps.Keys(c.Backings)) }

// FindBacking tells which cache has the backing device of that name.
func (f *File) FindBacking(name string) (cache string, ok bool) {
	for _, cn := range f.CacheNames() {
		if f.Caches[cn].Backings[name] != nil {
			return cn, true
		}
	}
	return "", false
}

// FreeUblkID is the lowest device number that no backing device of the file has and that taken
// does not report.
func (f *File) FreeUblkID(taken func(int) bool) int {
	used := map[int]bool{}
	for _, c := range f.Caches {
		for _, b := range c.Backings {
			used[b.UblkID] = true
		}
	}
	id := 0
	for used[id] || taken(id) {
		id++
	}
	return id
}

// Path is where the file was read from.
func (f *File) Path() string { return f.path }
