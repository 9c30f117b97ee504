// Package attrs is the model of what can be said about a single I/O request and of what is
// answered: attributes, results, where they come from, and the bytes that carry them.
//
// The idea is that of Kent Overstreet's "Extensible AIO interface" of 2012 (linux-kernel,
// October 2012): attributes travel with each request, not with a file or a device; the set is
// extensible; and for each attribute the issuer is told whether anybody handled it, because
// with stacked devices nobody can know beforehand where a request will go. Results are apart
// from the attributes, which are never written to.
//
// The model:
//
//   - An attribute has an [ID], a name, a value and a direction. All of that is in one table, the
//     registry ([Attributes], [Table]); an id that is not in it is no error, it is answered as [Unsupported].
//   - A [Set] is what is known of one request. Each attribute in it has a [Source]: given with the
//     request (explicit, integrity, ioprio, kernel), by a rule, or by default. [Set.Merge] joins sets of
//     several sources; what was given with the request beats a rule, a rule beats a default, and the
//     set remembers who won and who else had something to say.
//   - An attribute that cannot be read is invalid, for a [Reason]. It is answered so and otherwise
//     treated as not given; the others stand.
//   - [Results] hold an [Answer] for each attribute. The zero value is [NotHandled], so silence means
//     that; then there are [Handled], [Ignored] (understood, no effect here, with a reason), Unsupported
//     and [Invalid]. Beside them: where the data came from, checksums, times, the device.
//   - A required attribute makes the request fail before any effect if it is not handled:
//     [Set.CheckRequired]. Otherwise attributes never make a request fail, save a checksum that does
//     not match ([ErrnoMismatch]) and a deadline that is over ([ErrnoDeadline]).
//   - A request that was split has one Results for each piece; [Results.Combine] makes one of them,
//     [Results.Join] does for two devices that got the same request. The worst answer counts.
//
// A server's side of a request is: [Set.Decode] from a private copy of what the client wrote,
// Set.Merge with rules and defaults, [Results.Begin], an answer for each attribute that is
// [Results.Pending], Set.CheckRequired, the I/O, [Results.Encode]. None of it allocates. Sets
// and results are plain values; those with checksums or attributes unknown here refer to the
// memory they were decoded from, which has to stay as it is for as long as they are used.
//
// The bytes are described in FORMAT.md beside this file. How they reach the cache is not this
// package's affair.
package attrs
