// Package rules gives attributes to requests of programs that say nothing themselves.
//
// A [Rule] has conditions and attributes. All of its conditions must hold; one that is absent always
// does. A [Table] is the compiled list of a device's rules. It never changes, so that any number of
// threads may ask it without a lock, and a new one takes its place when a rule or the extents of a
// file change. [Table.Apply] finds the rules that match a request and merges what they give into its
// set, in their order: the first rule that gives an attribute wins, and what came with the request
// beats them all.
//
// # Ranges
//
// A rule with ranges matches a request that lies wholly in them; where ranges touch or overlap they
// count as one. A request that reaches out of them by as little as a sector does not match: the
// attributes would go for data that nobody meant, and a pin, an eviction or a bypass too much does
// more harm than one too few. The kernel makes few such requests: it merges only what is contiguous
// on the device as well as in time, and files end on filesystem blocks.
//
// # Cost
//
// The ranges of all rules are one sorted list of the places where something changes, with a bit for
// each rule that holds from there on. A request costs one binary search in it, plus a step for each
// change within the request, whatever the number of rules. Without a table Apply returns at once.
package rules
