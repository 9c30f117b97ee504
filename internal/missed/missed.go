// Package missed keeps markers: a backing device was changed while the SSD of its cache was lost, so
// that the SSD must not be believed about it any more. A marker has to be durable before the first such
// change, and to be found when the SSD is back; hence it is on the host, in a folder that outlives a
// reboot, and, for a backing device with a header, in that as well (internal/header).
//
// A marker is a file of JSON, DIR/missed/CACHE-BACKING.json, named by both UUIDs.
package missed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"ubcache/cache"
)

// EnvStateDir overrides where markers are.
const EnvStateDir = "UBCACHE_STATE_DIR"

// DefaultDir is the folder if neither environment nor configuration names one.
const DefaultDir = "/var/lib/ubcache"

// Dir is the folder for what has to outlive a reboot, configured being what the configuration says.
func Dir(configured string) string {
	if dir := os.Getenv(EnvStateDir); dir != "" {
		return dir
	}
	if configured != "" {
		return configured
	}
	return DefaultDir
}

// Marker says that the SSD of a cache has missed changes of a backing device.
type Marker struct {
	Cache   string `json:"cache"`   // UUID
	Backing string `json:"backing"` // UUID
	Name    string `json:"name"`    // of the backing device
	Epoch   uint64 `json:"epoch"`   // of the cache when it lost its SSD
	// DirtyBlocks is how many blocks of 4096 bytes the SSD had that the backing device lacked; -1: not known.
	DirtyBlocks int64     `json:"dirty_blocks"`
	Time        time.Time `json:"time"`
}

// Of makes a marker of what the engine says.
func Of(m cache.Missed, now time.Time) *Marker {
	return &Marker{
		Cache: m.Cache.String(), Backing: m.Backing.String(), Name: m.Name, Epoch: m.Epoch,
		DirtyBlocks: m.Dirty, Time: now.UTC().Truncate(time.Second),
	}
}

// Path is where the marker of a backing device is.
func Path(dir, cacheID, backing string) string {
	return filepath.Join(dir, "missed", cacheID+"-"+backing+".json")
}

// Write makes a marker durable, its folder included.
func Write(dir string, m *Marker) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return writeDurably(dir, Path(dir, m.Cache, m.Backing), append(text, '\n'))
}

// writeDurably replaces a file in a folder of dir, and makes that durable.
func writeDurably(dir, path string, text []byte) error {
	parent := filepath.Dir(path)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return fmt.Errorf("make folder in state-dir: %w", err)
	}
	tmp := path + ".new"
	if err := writeSync(tmp, text); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	// A folder is durable when the one above is; that chain ends at one which was there before.
	for _, d := range []string{parent, dir, filepath.Dir(dir)} {
		if err := syncDir(d); err != nil {
			return fmt.Errorf("flush %s: %w", d, err)
		}
	}
	return nil
}

func writeSync(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		_ = os.Remove(path) // of a full filesystem, on which it would stay
	}
	return err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Read returns the marker of a backing device, nil if there is none. One that cannot be read is an error:
// it was put there for a reason.
func Read(dir, cacheID, backing string) (*Marker, error) {
	path := Path(dir, cacheID, backing)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read marker: %w", err)
	}
	m := &Marker{}
	if err := json.Unmarshal(text, m); err != nil {
		return nil, fmt.Errorf("read marker %s: %w", path, err)
	}
	if m.Cache != cacheID || m.Backing != backing || m.DirtyBlocks < cache.DirtyUnknown {
		return nil, fmt.Errorf("marker %s is of something else", path)
	}
	return m, nil
}

// Remove takes a marker away, durably.
func Remove(dir, cacheID, backing string) error {
	if err := removeDurably(Path(dir, cacheID, backing)); err != nil {
		return fmt.Errorf("remove marker: %w", err)
	}
	return nil
}

func removeDurably(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return err
}
