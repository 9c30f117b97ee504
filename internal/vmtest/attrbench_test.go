//go:build vm

package vmtest

import (
	"errors"
	"testing"

	"ubcache/attrs"
	"ubcache/attrs/client"
)

// attrIssuer is what says something of a request: a program, by one of the channels.
type attrIssuer struct {
	// do reads or writes attrBytes at off. Without answers only the error is of meaning.
	do func(t testing.TB, write bool, off int64, s *attrs.Set) (attrs.Results, error)
	// can says whether there is a way to say that; nil: everything can be said.
	can     func(s *attrs.Set) bool
	answers bool
	// writes: attributes go along with writes only.
	writes bool
	source string         // as statistics name it; see from
	later  string         // what the table says where only a longer list of tests tries it
	client *client.Device // of the client library, else nil
	pi     *piRing        // of integrity metadata, else nil
}

// attrBench is an issuer and the cache that it talks to.
type attrBench struct {
	*testing.T
	attrIssuer
	c    *Cache
	buf  []byte // of the client library
	next *int64 // the first byte that no check has touched
	idle *int64 // the same for idle reads, from the end
	// probe is a client that looks at what the cache holds, where the issuer itself cannot.
	probe *client.Device
	look  []byte // its buffer
	// heard says whether this path leads attributes to the cache on this kernel.
	heard bool
	// short is where data with a short lifetime was written, nil if nobody wants to know.
	short map[int64]bool
}

const (
	attrBytes = 64 << 10
	// attrStep keeps requests of different checks apart, so that they are no stream.
	attrStep = 4 * attrBytes
)

// fresh is a place that is not cached.
func (b *attrBench) fresh() int64 {
	*b.next += attrStep
	return *b.next
}

// with is the bench for a subtest.
func (b *attrBench) with(t *testing.T) *attrBench {
	sub := *b
	sub.T = t
	return &sub
}

func attrSet(t testing.TB, text string) *attrs.Set {
	t.Helper()
	s, err := attrs.ParseSet(text)
	if err != nil {
		t.Fatal(err)
	}
	return &s
}

// issue does a request; an empty text says nothing.
func (b *attrBench) issue(write bool, off int64, text string) (attrs.Results, error) {
	b.Helper()
	var s *attrs.Set
	if text != "" {
		s = attrSet(b, text)
	}
	return b.do(b, write, off, s)
}

func (b *attrBench) read(off int64, text string) (attrs.Results, error) {
	b.Helper()
	return b.issue(false, off, text)
}

func (b *attrBench) write(off int64, text string) (attrs.Results, error) {
	b.Helper()
	return b.issue(true, off, text)
}

// plainly does what act does without attributes.
func (b *attrBench) plainly(off int64) {
	b.Helper()
	if _, err := b.issue(b.writes, off, ""); err != nil {
		b.Error(err)
	}
}

// act is a request of the kind that carries attributes, which must succeed and its attribute be handled.
func (b *attrBench) act(id attrs.ID, off int64, text string) attrs.Results {
	b.Helper()
	return b.handled(id, b.writes, off, text)
}

// handled wants a request to succeed and its attribute to be handled, as the answer says, or, where there
// is none, the statistics.
func (b *attrBench) handled(id attrs.ID, write bool, off int64, text string) attrs.Results {
	b.Helper()
	if b.answers && !b.writes {
		r, err := b.issue(write, off, text)
		if err != nil || r.For(id).Status != attrs.Handled {
			b.Errorf("%s: %v, error %v, want handled", text, r.For(id), err)
		}
		return r
	}
	before := b.c.Attributes(b).ByAttribute[id.String()]
	r, err := b.issue(write, off, text)
	after := b.c.Attributes(b).ByAttribute[id.String()]
	from := b.from(id)
	if err != nil || after.Handled <= before.Handled || after.Sources[from] <= before.Sources[from] {
		b.Errorf("%s: %+v, before %+v, error %v, want handled, from %s", text, after, before, err, from)
	}
	return r
}

// from is the source of an attribute: of what the kernel tells, ioprio is a part.
func (i *attrIssuer) from(id attrs.ID) string {
	if i.source == "ioprio" && id == attrs.IDLifetime {
		return "kernel"
	}
	return i.source
}

// seek is a request of the probe, or of the issuer where that can do the same.
func (b *attrBench) seek(off int64, text string) (attrs.Results, error) {
	b.Helper()
	if b.probe == nil {
		return b.read(off, text)
	}
	_, r, err := b.probe.ReadAt(b.look[:attrBytes], off, attrSet(b, text))
	return r, err
}

// where says where the data of a place is, as a read finds it that changes nothing.
func (b *attrBench) where(off int64) attrs.Origin {
	b.Helper()
	r, err := b.seek(off, "hint=bypass")
	if err != nil {
		b.Error(err)
	}
	return r.Origin
}

// origin wants the data of a place to be on the SSD or on the backing device.
func (b *attrBench) origin(off int64, want attrs.Origin, after string) {
	b.Helper()
	if got := b.where(off); got != want {
		b.Errorf("after %s the data is on %v, want %v", after, got, want)
	}
}

// reluctant makes the device cache nothing of what the issuer does by itself, until the end of the check.
func (b *attrBench) reluctant() {
	b.Helper()
	with, without := "sequential-cutoff=4K", "sequential-cutoff=0"
	if b.writes {
		with, without = "mode=writearound", "mode=writeback"
	}
	b.c.Set(b, "data", with)
	b.Cleanup(func() { b.c.Set(b, "data", without) })
}

// clientIssuer is a program that uses the client library.
func clientIssuer(d *client.Device, buf []byte) attrIssuer {
	return attrIssuer{
		answers: true, source: "explicit", client: d,
		do: func(_ testing.TB, write bool, off int64, s *attrs.Set) (attrs.Results, error) {
			do := d.ReadAt
			if write {
				do = d.WriteAt
			}
			_, r, err := do(buf, off, s)
			return r, err
		},
	}
}

// openClient opens a device until the end of the test, with a buffer of its memory.
func openClient(t *testing.T, path string, o client.Options) (*client.Device, []byte) {
	t.Helper()
	d, err := client.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil && !errors.Is(err, client.ErrClosed) {
			t.Error(err)
		}
	})
	buf, err := d.Alloc(attrBytes)
	if err != nil {
		t.Fatal(err)
	}
	return d, buf
}
