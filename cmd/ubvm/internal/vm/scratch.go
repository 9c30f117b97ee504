package vm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A Scratch is a folder for the files of one run. It holds a lock while its process lives, so that
// a later run can tell, and remove, what a killed one has left.
type Scratch struct {
	Dir   string
	alive *os.File
}

// NewScratch makes a folder below parent and removes those of dead processes.
func NewScratch(parent string) (*Scratch, error) {
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, fmt.Errorf("make scratch folder: %w", err)
	}
	removeStale(parent)
	dir, err := os.MkdirTemp(parent, "run")
	if err != nil {
		return nil, fmt.Errorf("make scratch folder: %w", err)
	}
	alive, err := os.Create(filepath.Join(dir, "alive"))
	if err == nil {
		err = unix.Flock(int(alive.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("make scratch folder: %w", err)
	}
	return &Scratch{Dir: dir, alive: alive}, nil
}

// Close removes the folder.
func (s *Scratch) Close() error {
	defer s.alive.Close()
	return os.RemoveAll(s.Dir)
}

func removeStale(parent string) {
	dirs, _ := filepath.Glob(filepath.Join(parent, "run*"))
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		if err != nil || time.Since(info.ModTime()) < time.Minute {
			continue // perhaps not locked yet
		}
		f, err := os.Open(filepath.Join(dir, "alive"))
		if err == nil {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
			f.Close()
		}
		if err == nil || errors.Is(err, os.ErrNotExist) {
			os.RemoveAll(dir)
		}
	}
}
