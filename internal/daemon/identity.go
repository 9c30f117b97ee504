package daemon

import (
	"ubcache/cache"
	"ubcache/internal/blockdev"
)

// CheckIdentity makes sure that a device is the backing device of the record: what can be told without
// a look at the data on it, which a command that reads it wants to see whatever it is.
func CheckIdentity(d *blockdev.Device, r *cache.BackingRecord) error {
	if err := checkIdentity(d.Info, r); err != nil {
		return err
	}
	return nil
}
