package shm_test

import (
	"fmt"
	"log"

	"ubcache/attrs"
	"ubcache/attrs/shm"
)

// Both sides of a request: a client puts attributes beside its buffer and issues I/O from it, and a
// server that is handed the place of the data finds them there and answers. Package client does the
// first half; what lies in between is the kernel or the ring.
func Example() {
	// The client.
	region, err := shm.Create(shm.Options{Bytes: 1 << 20})
	if err != nil {
		log.Fatal(err)
	}
	defer region.Close()
	const off, bytes = 3 * shm.PageBytes, 2 * shm.PageBytes // of the buffer, in the region
	var set attrs.Set
	set.SetHint(attrs.HintOnce)
	ticket, err := region.Issue(off, bytes, &set)
	if err != nil {
		log.Fatal(err)
	}

	// The server has got the descriptor of the memory, and now a request for that place. The block
	// layer has made two of it.
	view, err := shm.Open(region.FD(), 1<<30)
	if err != nil {
		log.Fatal(err)
	}
	defer view.Close()
	var q shm.Request
	for piece := range int64(2) {
		if _, err := view.Read(&q, off+piece*shm.PageBytes, shm.PageBytes); err != nil {
			log.Fatal(err)
		}
		const device = 5
		q.Results.Begin(&q.Set, attrs.Request{Direction: attrs.Read, Bytes: shm.PageBytes}, device)
		q.Results.Handle(attrs.IDHint)
		q.Results.Origin = attrs.OriginSSD
		if err := view.Answer(&q, device); err != nil {
			log.Fatal(err)
		}
	}

	// The client again.
	var c shm.Collector
	res := region.Collect(ticket, &c)
	fmt.Println(res.For(attrs.IDHint), "by device", res.Devices(), "from", res.Origin)

	// Nobody answers: the data was on some other device.
	ticket, err = region.Issue(off, bytes, &set)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(region.Collect(ticket, &c).For(attrs.IDHint))
	// Output:
	// handled by device [5] from ssd
	// not handled
}
