// Package shm is the memory that a client and the servers of a cache share: the data of requests,
// and beside every page of it the attributes that the client gives and the answers that it gets.
//
// It has both sides. A client makes a [Region], a sealed memfd. Before a request it calls
// [Region.Issue] with the attributes and the place of the request's data; the request then goes to
// the block device (O_DIRECT, with the data in the region), or over the ring in the region
// ([Region.Ring]), and when it is done [Region.Collect] has the answers.
//
// A server makes a [View] of the memfd, reads with [View.Read] what the client said with a request
// that arrived, or with a piece or a merge of requests, and answers with [View.Answer]. To a server
// the memory is hostile: the client may change, unmap or punch holes into it at any time. A View
// checks the seals and the header once, copies every slot once before it looks at it, and survives
// the signals that access to such memory can raise: [ErrFault].
//
// The layout is described in FORMAT.md beside this file, for other languages in ubcache_shm.h with a
// client in C in the folder example. How a server gets the memory is described there too: a [Message]
// of kind [Hello], and what follows it.
package shm
