package rules_test

import (
	"fmt"
	"log"

	"ubcache/attrs"
	"ubcache/attrs/rules"
)

// The extents of a database's files are pinned, large reads leave the cache alone, and what a request
// says itself beats both.
func Example() {
	pin, err := rules.ParseSet("hint=pin")
	if err != nil {
		log.Fatal(err)
	}
	bypass, err := rules.ParseSet("hint=bypass,tenant=9")
	if err != nil {
		log.Fatal(err)
	}
	table, err := rules.Compile([]rules.Rule{
		{Ranged: true, Ranges: []rules.Range{{Off: 1 << 20, End: 3 << 20}}, Set: pin},
		{MinBytes: 256 << 10, Direction: attrs.Read, Set: bypass},
	})
	if err != nil {
		log.Fatal(err)
	}
	ask := func(what string, set attrs.Set, q rules.Query) {
		table.Apply(q, &set)
		fmt.Printf("%s: %s\n", what, set.String())
	}
	small := rules.Query{Off: 1 << 20, Len: 4096, Direction: attrs.Read}
	large := rules.Query{Off: 1 << 20, Len: 1 << 20, Direction: attrs.Read}
	elsewhere := rules.Query{Off: 8 << 20, Len: 1 << 20, Direction: attrs.Read}
	own, _ := attrs.ParseSet("hint=once")
	ask("small, in the file", attrs.Set{}, small)
	ask("large, in the file", attrs.Set{}, large)
	ask("large, elsewhere", attrs.Set{}, elsewhere)
	ask("with a hint of its own", own, small)
	// Output:
	// small, in the file: hint=pin
	// large, in the file: hint=pin,tenant=9
	// large, elsewhere: hint=bypass,tenant=9
	// with a hint of its own: hint=once
}

// Some attributes make no sense in a rule.
func ExampleParseSet() {
	for _, text := range []string{"hint=bypass", "checksum=crc32c", "hint=pin,required:hint", ""} {
		set, err := rules.ParseSet(text)
		fmt.Printf("%q: %v, source %v\n", text, err, set.Source(attrs.IDHint))
	}
	// Output:
	// "hint=bypass": <nil>, source rule
	// "checksum=crc32c": checksums go with the data of one request, a rule cannot give them, source none
	// "hint=pin,required:hint": a rule cannot make an attribute required: programs that said nothing would fail, source rule
	// "": gives no attribute, source none
}

// Files lie in many extents, of which neighbours count as one.
func ExampleJoin() {
	fmt.Println(rules.Join([]rules.Range{{8192, 12288}, {0, 4096}, {4096, 8192}, {20480, 24576}}))
	// Output: [{0 12288} {20480 24576}]
}
