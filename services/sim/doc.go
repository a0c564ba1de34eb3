// Package sim drives what Millrace decides through histories that no clock would bring about: its tests run the pure
// functions of the services, the real ones, over a bus, a store, a storage and a clock of their own, one step at a time in
// an order that a seed chooses. Between any two effects a process can be killed, or stand still until its leases have gone
// to others. After every step and in the end the invariants of docs/design.md §4 must hold.
//
// What is simulated here is the order of effects; that the services keep to it is for the crash matrix to show
// (services/millrace, TestCrashMatrix).
//
//	make sim                  10,000 seeds
//	make sim SEED=17          one seed, shrunk when it fails
package sim
