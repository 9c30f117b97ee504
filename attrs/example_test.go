package attrs_test

import (
	"fmt"

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
