// Package writelog reads what the kernel's dm-log-writes has recorded of a device and plays it on to
// another device, so that a test can have the device as it was at any moment.
//
// The log has the order in which writes became durable: a write with FUA stands where it ended, any
// other one before the flush that made it durable, one that no flush has covered yet is not there.
// So the entries up to one of them are what a power cut leaves at the worst: everything that was in
// the device's write cache is lost.
//
// The format is that of drivers/md/dm-log-writes.c: a sector with the number of entries, and then for
// each entry a sector that describes it, and its data.
package writelog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	magic   = 0x6a736677736872
	version = 1
	// maxSectors is far more than the kernel writes as one, a discard aside.
	maxSectors = 1 << 20
)

// Kind is what an entry says.
type Kind uint8

// Kinds of entries.
const (
	Write Kind = iota
	Discard
	Flush // all writes that stand before it and had ended when it began are durable
	Mark
)

func (k Kind) String() string { return [...]string{"write", "discard", "flush", "mark"}[k] }

// Entry is one entry of a log.
type Entry struct {
	Kind     Kind
	FUA      bool   // of a write
	Off, Len int64  // where on the device, in bytes
	Text     string // of a mark
	logOff   int64  // where the data is
}

// Durable reports whether the entry is a point at which something became durable.
func (e *Entry) Durable() bool { return e.Kind == Flush || e.Kind == Write && e.FUA }

func (e Entry) String() string {
	switch {
	case e.Kind == Mark:
		return "mark " + e.Text
	case e.Kind == Flush:
		return "flush"
	case e.FUA:
		return fmt.Sprintf("write with FUA of %d at %d", e.Len, e.Off)
	}
	return fmt.Sprintf("%s of %d at %d", e.Kind, e.Len, e.Off)
}

// Log is a log that has been read. Entry i is what happened as number i.
type Log struct {
	Entries []Entry
	dev     io.ReaderAt
	sector  int64
}

const (
	flagFlush = 1 << iota
	flagFUA
	flagDiscard
	flagMark
)

// Read reads the entries of a log; their data is read when it is played.
func Read(dev io.ReaderAt) (*Log, error) {
	le := binary.LittleEndian
	head := make([]byte, 512)
	if _, err := dev.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read log of writes: %w", err)
	}
	if le.Uint64(head) != magic || le.Uint64(head[8:]) != version {
		return nil, errors.New("read log of writes: there is none")
	}
	n := le.Uint64(head[16:])
	l := &Log{dev: dev, sector: int64(le.Uint32(head[24:]))}
	if l.sector != 512 && l.sector != 4096 {
		return nil, fmt.Errorf("read log of writes: sectors of %d bytes", l.sector)
	}
	at := l.sector
	for i := range n {
		if _, err := dev.ReadAt(head, at); err != nil {
			return nil, fmt.Errorf("read entry %d of log of writes: %w", i, err)
		}
		e, dataLen, err := l.decode(head)
		if err != nil {
			return nil, fmt.Errorf("read entry %d of log of writes: %w", i, err)
		}
		e.logOff = at + l.sector
		at = e.logOff + dataLen
		l.Entries = append(l.Entries, e)
	}
	return l, nil
}

// decode reads the sector that describes an entry; dataLen is how much of the log its data takes.
func (l *Log) decode(p []byte) (e Entry, dataLen int64, err error) {
	le := binary.LittleEndian
	off, sectors, flags, textLen := le.Uint64(p), le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:])
	if off > 1<<50 || sectors > 1<<50 || textLen > uint64(len(p)-32) {
		return e, 0, fmt.Errorf("%d sectors at %d, %d bytes of text", sectors, off, textLen)
	}
	e.Off, e.Len = int64(off)*l.sector, int64(sectors)*l.sector
	e.FUA = flags&flagFUA != 0
	switch {
	case flags&flagMark != 0:
		return Entry{Kind: Mark, Text: string(p[32:][:textLen])}, 0, nil
	case flags&flagDiscard != 0:
		e.Kind = Discard
		return e, 0, nil
	case flags&flagFlush != 0 && sectors == 0:
		e.Kind = Flush
		return e, 0, nil
	case flags&flagFlush != 0:
		return e, 0, errors.New("a flush with data, which the device mapper splits")
	case sectors == 0 || sectors > maxSectors:
		return e, 0, fmt.Errorf("a write of %d sectors", sectors)
	}
	return e, e.Len, nil
}

// Target is what a log is played to.
type Target interface {
	io.WriterAt
	// Discard makes a range read as zeroes, as the devices of the test do.
	Discard(off, n int64) error
}

// Play does entries [from, to) once more.
func (l *Log) Play(to Target, from, end int) error {
	for i := from; i < end; i++ {
		if err := l.PlayPart(to, i, 0, l.Entries[i].Len); err != nil {
			return err
		}
	}
	return nil
}

// PlayPart does bytes [from, end) of entry i, as if the rest had been torn off.
func (l *Log) PlayPart(to Target, i int, from, end int64) error {
	e := &l.Entries[i]
	var err error
	switch {
	case e.Kind == Discard:
		err = to.Discard(e.Off+from, end-from)
	case e.Kind == Write:
		p := make([]byte, end-from)
		if _, err = l.dev.ReadAt(p, e.logOff+from); err == nil {
			_, err = to.WriteAt(p, e.Off+from)
		}
	}
	if err != nil {
		return fmt.Errorf("play entry %d, %v: %w", i, e, err)
	}
	return nil
}
