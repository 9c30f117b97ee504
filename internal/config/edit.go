package config

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/BurntSushi/toml"
	"golang.org/x/sys/unix"

	"ubcache/internal/report"
)

const defaultHeader = `# ubcache: caches and their backing devices.
# The commands format, attach, detach, set, rule and tenant rewrite this file; comments above
# the first line that is none are kept, others are not.
`

// Edit changes the file: it reads it, lets change alter it, and replaces it as a whole, so that a
// crash leaves the old or the new one. Daemons and commands that edit at the same time wait for
// each other. If change fails the file stays as it is.
func Edit(path string, change func(f *File) error) error {
	unlock, err := lock(path)
	if err != nil {
		return report.Wrap("lock "+path, err, "")
	}
	defer unlock()
	f, err := Load(path)
	if err != nil {
		return err
	}
	if err := change(f); err != nil {
		return err
	}
	if err := f.check(); err != nil {
		return report.Wrap("change "+path, err, "")
	}
	if err := f.save(); err != nil {
		return report.Wrap("write "+path, err, "")
	}
	return nil
}

// lock takes a lock that belongs to the file's name. The file itself is replaced by each change,
// so the lock is on it and taken again if it was replaced while we waited.
func lock(path string) (unlock func(), err error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return nil, err
		}
		if err := flock(f); err != nil {
			_ = f.Close()
			return nil, err
		}
		have, err := f.Stat()
		now, err2 := os.Stat(path)
		if err == nil && err2 == nil && os.SameFile(have, now) {
			return func() { _ = f.Close() }, nil
		}
		_ = f.Close()
	}
}

func flock(f *os.File) error {
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
			return err
		}
	}
}

// Encode is the text of the file.
func (f *File) Encode() ([]byte, error) {
	var b bytes.Buffer
	header := f.header
	if header == "" {
		header = defaultHeader
	}
	b.WriteString(header)
	if !bytes.HasSuffix(b.Bytes(), []byte("\n\n")) {
		b.WriteByte('\n')
	}
	var body bytes.Buffer
	enc := toml.NewEncoder(&body)
	enc.Indent = ""
	if err := enc.Encode(f); err != nil {
		return nil, err
	}
	b.WriteString(tidy(body.String()))
	return b.Bytes(), nil
}

// tidy drops the headings of tables that only have tables in them, and parts the others by a blank
// line.
func tidy(text string) string {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })
	var b strings.Builder
	heading := func(s string) bool { return strings.HasPrefix(s, "[") }
	for i, l := range lines {
		if heading(l) {
			if i+1 < len(lines) && strings.HasPrefix(lines[i+1], strings.TrimSuffix(l, "]")+".") {
				continue
			}
			if b.Len() > 0 {
				b.WriteByte('\n')
			}
		}
		b.WriteString(l)
		b.WriteByte('\n')
	}
	return b.String()
}

func (f *File) save() error {
	text, err := f.Encode()
	if err != nil {
		return err
	}
	if _, err := parse(f.path, text); err != nil {
		return fmt.Errorf("what would be written does not read back: %w", err)
	}
	dir := filepath.Dir(f.path)
	tmp, err := os.CreateTemp(dir, ".ubcache-*.toml")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	mode := os.FileMode(0o644)
	if info, err := os.Stat(f.path); err == nil {
		mode = info.Mode().Perm()
	}
	if _, err := tmp.Write(text); err != nil {
		_ = tmp.Close()
		return err
	}
	if err := tmp.Chmod(mode); err != nil {
		_ = tmp.Close()
		return err
	}
	if err := tmp.Sync(); err != nil {
		_ = tmp.Close()
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), f.path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
