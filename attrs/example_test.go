package attrs_test

import (
	"fmt"
	"time"

	"ubcache/attrs"
)

// A client says what a request is, and reads what became of it.
func Example() {
	var slot, answer [attrs.SlotBytes]byte

	// The client.
	var s attrs.Set
	s.SetHint(attrs.HintBypass)
	s.SetTrace(0xfeed)
	s.Require(attrs.IDHint)
	if _, err := s.Encode(slot[:]); err != nil {
		panic(err)
	}

	// The cache, with a private copy of the slot.
	private := slot
	var got attrs.Set
	if err := got.Decode(private[:]); err != nil {
		panic(err)
	}
	var r attrs.Results
	r.Begin(&got, attrs.Request{Direction: attrs.Read, Bytes: 4096}, 1)
	if r.Pending(&got, attrs.IDHint) {
		r.Handle(attrs.IDHint)
	}
	if id, errno := got.CheckRequired(&r); errno != 0 {
		fmt.Println("fails for", id, errno)
	}
	r.Origin = attrs.OriginBacking
	if _, err := r.Encode(answer[:]); err != nil {
		panic(err)
	}

	// The client again.
	var results attrs.Results
	if err := results.Decode(answer[:]); err != nil {
		panic(err)
	}
	fmt.Println(results.Origin)
	fmt.Println("hint:", results.For(attrs.IDHint))
	fmt.Println("trace:", results.For(attrs.IDTrace))
	// Output:
	// backing
	// hint: handled
	// trace: not handled
}

func ExampleParseSet() {
	s, err := attrs.ParseSet("tenant=7,prio=rt/2,deadline=2ms,hint=pin,required:hint")
	fmt.Println(s.String(), err)
	_, err = attrs.ParseSet("prio=rt")
	fmt.Println(err)
	// Output:
	// hint=pin,prio=rt/2,tenant=7,deadline=2000us,required:hint <nil>
	// attribute "prio=rt": needs a level of 0 to 7, as in rt/4
}

func ExampleSet_Merge() {
	s, _ := attrs.ParseSet("hint=bypass")
	rule, _ := attrs.ParseSet("hint=pin,tenant=7")
	rule.Mark(attrs.SourceRule)
	s.Merge(&rule)
	fmt.Print(s.Explain())
	// Output:
	// hint      bypass            explicit, over rule
	// tenant    7                 rule
}

func ExampleSet_IOPrio() {
	s, _ := attrs.ParseSet("hint=bypass,prio=idle")
	v := s.IOPrio()
	fmt.Printf("class %d, hint %d\n", v>>13, v>>3&0x3ff)
	// Output: class 3, hint 770
}

// One piece of the request went to a device that knows nothing of attributes.
func ExampleResults_Combine() {
	s, _ := attrs.ParseSet("hint=once")
	var pieces [2]attrs.Results
	pieces[0].Begin(&s, attrs.Request{Direction: attrs.Read, Bytes: 4096}, 1)
	pieces[0].Handle(attrs.IDHint)

	total := pieces[0]
	for i := range pieces[1:] {
		total.Combine(&pieces[1+i])
	}
	fmt.Println(total.For(attrs.IDHint), len(total.Devices()))
	// Output: not handled 1
}

// Sets are built by setters; a value that is out of range has no encoding.
func ExampleSet() {
	var s attrs.Set
	s.SetHint(attrs.HintPin)
	s.SetPriority(attrs.Priority{Class: attrs.ClassRT, Level: 2})
	s.SetTenant(attrs.Tenant{ID: 7})
	s.SetDeadline(50 * time.Millisecond)
	s.SetTiming()
	s.Require(attrs.IDHint)
	fmt.Println(s.String())

	s.SetPriority(attrs.Priority{Class: attrs.ClassRT, Level: 9})
	_, err := s.Encode(make([]byte, attrs.MaxBytes))
	fmt.Println(err)
	// Output:
	// hint=pin,prio=rt/2,tenant=7,deadline=50000us,timing,required:hint
	// an attribute is invalid
}

// The bytes that travel, and what a decoder of another time makes of an id that it does not know.
func ExampleSet_Decode() {
	s, _ := attrs.ParseSet("hint=once,0xf001=c0ffee")
	buf := make([]byte, s.EncodedSize())
	n, err := s.Encode(buf)
	fmt.Println(n, "bytes", err)

	var got attrs.Set
	fmt.Println(got.Decode(buf), got.Hint(), got.Unknown())
	var r attrs.Results
	r.Begin(&got, attrs.Request{Direction: attrs.Read, Bytes: 4096}, 1)
	r.Handle(attrs.IDHint)
	fmt.Print(r.String())

	fmt.Println(got.Decode([]byte("something else")))
	// Output:
	// 48 bytes <nil>
	// <nil> once [0xf001]
	// data      none, 1 blocks, answered by device 1
	// hint      handled
	// 0xf001    unsupported (unknown id)
	// no attributes there
}

// Checksums of data, one for each block of 4096 bytes.
func ExampleSet_SetChecksum() {
	data := make([]byte, 2*attrs.BlockSize)
	copy(data, "precious")
	sum := attrs.Checksum{Algorithm: attrs.CRC32C, Sums: attrs.CRC32C.AppendSums(nil, data)}
	var s attrs.Set
	s.SetChecksum(sum)
	fmt.Println(s.String())

	data[attrs.BlockSize+5] ^= 1
	block, ok := sum.Verify(0, data)
	fmt.Println(block, ok)
	// Output:
	// checksum=crc32c:303c6ef3:98f94189
	// 1 false
}

// What a server answers, as a client reads it.
func ExampleResults() {
	s, _ := attrs.ParseSet("hint=pin,prio=rt/0,timing,lifetime=short")
	var r attrs.Results
	r.Begin(&s, attrs.Request{Direction: attrs.Read, Bytes: 65536}, 1)
	r.Ignore(attrs.IDHint, attrs.ReasonQuota)
	r.Handle(attrs.IDPriority)
	r.SetTiming(attrs.Timing{SSD: 80 * time.Microsecond, Total: 95 * time.Microsecond})
	r.Origin = attrs.OriginSSD

	for _, a := range attrs.Attributes() {
		if s.Has(a.ID) {
			fmt.Println(a.Name, r.For(a.ID))
		}
	}
	if t, ok := r.Timing(); ok {
		fmt.Println("SSD", t.SSD, "of", t.Total)
	}
	fmt.Println("checksum", r.For(attrs.IDChecksum))
	// Output:
	// hint ignored (quota used up)
	// prio handled
	// lifetime ignored (wrong direction)
	// timing handled
	// SSD 80µs of 95µs
	// checksum not handled
}

// A request with a required attribute that is not handled fails, before any effect.
func ExampleSet_CheckRequired() {
	s, _ := attrs.ParseSet("hint=bypass,0xf001=00,required:0xf001")
	var r attrs.Results
	r.Begin(&s, attrs.Request{Direction: attrs.Write, Bytes: 4096}, 1)
	id, errno := s.CheckRequired(&r)
	fmt.Println(id, errno == attrs.ErrnoRefused, r.For(id))
	// Output:
	// 0xf001 true unsupported (unknown id)
}

func ExampleAttributes() {
	for _, a := range attrs.Attributes() {
		fmt.Printf("%d %s, %v\n", a.ID, a.Name, a.Direction)
	}
	// Output:
	// 1 hint, both
	// 2 mode, write
	// 3 prio, both
	// 4 checksum, both
	// 5 lifetime, write
	// 6 tenant, both
	// 7 deadline, both
	// 8 timing, both
	// 9 trace, both
}
