package shm

import (
	"testing"

	"ubcache/attrs"
)

// BenchmarkRoundTrip is what a request of one page pays for its attributes: at the client, and at the
// server, which handles them all.
func BenchmarkRoundTrip(b *testing.B) {
	r, v := pair(b, Options{Bytes: 1 << 20})
	s, err := attrs.ParseSet("hint=cache,tenant=7,trace=1")
	if err != nil {
		b.Fatal(err)
	}
	c, q := new(Collector), &Request{Memo: new(Memo)}
	b.Run("client", func(b *testing.B) {
		for b.Loop() {
			t, err := r.Issue(0, PageBytes, &s)
			if err != nil {
				b.Fatal(err)
			}
			r.Collect(t, c)
		}
	})
	b.Run("both", func(b *testing.B) {
		for b.Loop() {
			t, err := r.Issue(0, PageBytes, &s)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := v.Read(q, 0, PageBytes); err != nil {
				b.Fatal(err)
			}
			handle(q, PageBytes, dev1)
			if err := v.Answer(q, dev1); err != nil {
				b.Fatal(err)
			}
			if r.Collect(t, c).For(attrs.IDHint).Status != attrs.Handled {
				b.Fatal("not handled")
			}
		}
	})
	b.Run("silent", func(b *testing.B) {
		for b.Loop() {
			if _, err := v.Read(q, PageBytes, PageBytes); err != nil {
				b.Fatal(err)
			}
		}
	})
}
