package shm

import (
	"runtime/debug"
	"testing"

	"ubcache/attrs"
)

// TestAnswerAll answers requests at once of which some are answered as the ones before, and others are not: whose set
// is another one, who said nothing, whose first slot another device has, and whose memory is gone.
func TestAnswerAll(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	r, v := pair(t, Options{Bytes: 1 << 20})
	gone := truncated(t)
	same, err := attrs.ParseSet("hint=cache,tenant=7")
	if err != nil {
		t.Fatal(err)
	}
	var list []*Request
	tickets := map[int]Ticket{}
	var model attrs.Results
	add := func(page int, s *attrs.Set) *Request {
		t.Helper()
		q := &Request{Memo: &memo}
		if s != nil {
			tickets[page] = issue(t, r, int64(page)*PageBytes, PageBytes, s)
		}
		if _, err := v.Read(q, int64(page)*PageBytes, PageBytes); err != nil {
			t.Fatal(err)
		}
		if s == &same && model.Stamp() != 0 {
			q.Results.Repeat(&model, PageBytes)
		} else if s != nil {
			handle(q, PageBytes, dev1)
		}
		if s == &same && model.Stamp() == 0 {
			if !q.Results.Repeatable() {
				t.Fatal("not repeatable")
			}
			model.Repeat(&q.Results, PageBytes)
		}
		list = append(list, q)
		return q
	}
	for page := range 4 {
		add(page, &same)
	}
	add(4, hint(attrs.HintOnce))
	add(5, nil)
	add(6, &same)
	serve(t, v, 6*PageBytes, PageBytes, dev2)
	lost := add(7, &same)
	lost.view, lost.page = gone, 0
	add(8, &same)
	long := &attrs.Set{}
	long.SetChecksum(attrs.Checksum{Algorithm: attrs.CRC32C, Sums: sums(attrs.CRC32C, 1)})
	add(9, long)
	add(10, &same)
	for _, from := range []int{len(list), 1} { // all at once, and one
		AnswerAll(list[:from], dev1)
	}
	var c Collector
	for page, ticket := range tickets {
		res := r.Collect(ticket, &c)
		want, n := attrs.Handled, 1
		switch page {
		case 6:
			n = 2
		case 7:
			want, n = attrs.NotHandled, 0
		}
		id := attrs.IDHint
		if page == 9 {
			id = attrs.IDChecksum
		}
		status(t, res, want, id)
		devices(t, res, n)
		if t.Failed() {
			t.Fatalf("page %d: %v", page, res)
		}
	}
}
