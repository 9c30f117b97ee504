package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"ubcache/attrs/shm"
	"ubcache/cache"
)

// sharedRecord is the file in the runtime folder that says what memory is registered with a block
// device. It is replaced as a whole by a rename, so a daemon that dies leaves the old one or the new
// one. Like the registrations it is gone after a reboot.
type sharedRecord struct {
	Version int `json:"version"`
	// Merges is what nomerges of the queue was before memory was registered; empty: it is as it was.
	Merges  string         `json:"nomerges,omitempty"`
	Buffers []sharedBuffer `json:"buffers"`
	// Stale are indices that are registered with memory that nobody has.
	Stale []int `json:"stale,omitempty"`
}

// sharedBuffer is a client's memory. Index is noIndex if it was about to be registered.
type sharedBuffer struct {
	Index  int          `json:"index"`
	Owner  process      `json:"owner"`
	Memory shm.Identity `json:"memory"`
	// DataBytes and Entries are the layout; the client could have changed it since.
	DataBytes int64 `json:"data_bytes"`
	Entries   int   `json:"entries"`
}

const sharedRecordVersion = 1

// sharedPath is the record of the block device of a backing device.
func sharedPath(dir string, id cache.UUID) string {
	return filepath.Join(dir, id.String()+".shared")
}

// save brings the record up to date. s.mu is held.
func (s *sharing) save() error {
	r := sharedRecord{Version: sharedRecordVersion, Merges: s.mu.merges, Stale: s.mu.stale}
	for _, b := range s.mu.list {
		r.Buffers = append(r.Buffers, sharedBuffer{
			Index: b.index, Owner: b.owner, Memory: b.memory,
			DataBytes: b.view.DataBytes(), Entries: b.view.Entries(),
		})
	}
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write record of registered memory: %w", err)
	}
	next := s.mu.path + ".new"
	if err = os.WriteFile(next, text, 0o600); err == nil {
		err = os.Rename(next, s.mu.path)
	}
	if err != nil {
		return fmt.Errorf("write record of registered memory: %w", err)
	}
	return nil
}

// load reads the record; nil without an error if there is none.
func (s *sharing) load() (*sharedRecord, error) {
	text, err := os.ReadFile(s.mu.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read record of registered memory: %w", err)
	}
	r := &sharedRecord{}
	if err = json.Unmarshal(text, r); err == nil && r.Version != sharedRecordVersion {
		err = fmt.Errorf("version %d, this one knows %d", r.Version, sharedRecordVersion)
	}
	if err != nil {
		return nil, fmt.Errorf("read record of registered memory %s: %w", s.mu.path, err)
	}
	return r, nil
}
