----------------------------- MODULE MultiPaxos -----------------------------
(* The protocol of fastpaxos_core: docs/protocol.md, rules 1-4, over batches that span slots. See README.md here.

   A batch is a value, proposed in a ballot. The unit that is promised, accepted, chosen and learned is the batch, never
   the slot. Every acceptor has a memory and a disk: Persist copies the one to the other (a group commit), Crash goes
   back. What rests on durability leaves with Persist and never before.

   Messages are facts that never go away, so that loss, delay, reordering and duplication need no actions: `proposed`
   (Accept), `promises` (Promise), `accepted` (Accepted), Known (Learn). *)
EXTENDS Naturals, FiniteSets

CONSTANTS
    AcceptorMax,    \* acceptors are 1..AcceptorMax, each is proposer and learner as well
    BallotMax,      \* ballots are 1..BallotMax, 0 is none
    SlotMax,        \* slots are 1..SlotMax
    Ranges,         \* the sets of slots that a leader makes one batch of new commands of
    PendingMax,     \* changes that wait for the disk at most, on any two replicas
    LazyCommit,     \* TRUE: followers commit when it matters, not whenever they can
    Corruption,     \* TRUE: once, on one acceptor, a durable record becomes unreadable
    Mutant          \* "none", or the name of the one rule that is broken

VARIABLES
    memory,         \* acceptor -> [promised, log, commit, unknown]
    disk,           \* the same as of the last Persist, without the commit index: what a restart finds
    owner,          \* ballot -> the acceptor whose ballot it is; never changes
    phase,          \* ballot -> "free", "created", "asking" (Prepare is out), "leading", "over"
    proposed,       \* ballot -> the values that its leader proposes: its Accept messages
    promises,       \* ballot -> Promise messages, while its candidate is asking
    accepted,       \* ballot -> Accepted messages: [acceptor, value]
    corrupted       \* whether the one corruption has happened

vars == <<memory, disk, owner, phase, proposed, promises, accepted, corrupted>>

Acceptors == 1..AcceptorMax
Ballots == 1..BallotMax
Slots == 1..SlotMax
Is(name) == Mutant = name

-----------------------------------------------------------------------------
(* Values and batches. A value is named by the ballot that made it and by its range; a no-op is a value like any other. *)

Value(origin, begin, end) == [origin |-> origin, begin |-> begin, end |-> end]
Batch(b, value) == [ballot |-> b, value |-> value]
SlotsOf(value) == value.begin..(value.end - 1)
Overlap(v, w) == v.begin < w.end /\ w.begin < v.end

\* All ways to cut the slots from `first` on into batches of new commands, as far as Ranges allows.
Cuts == [first \in 1..(SlotMax + 1) |->
    {cut \in SUBSET Ranges : \E last \in (first - 1)..SlotMax :
        /\ UNION cut = first..last
        /\ \A r, q \in cut : r = q \/ r \cap q = {}
        /\ \A r \in Ranges : ~(last + 1 \in r /\ last \notin r)}]

Majority(set) == 2 * Cardinality(set) > Cardinality(Acceptors)
IsPhase1Quorum(set) == Majority(set)
IsPhase2Quorum(set) == IF Is("disjoint_quorums") THEN set # {} ELSE Majority(set)

Vote(a, value) == [acceptor |-> a, value |-> value]
Voters(b, value) == {a \in Acceptors : Vote(a, value) \in accepted[b]}
Chosen(b, value) == IsPhase2Quorum(Voters(b, value))

Committed(a) == {x \in memory[a].log : x.value.begin <= memory[a].commit}
\* What a Fetch is answered with, now or by a replica that has crashed since: batches known to be committed.
Known == UNION {Committed(a) : a \in Acceptors} \cup
         UNION {{Batch(b, v) : v \in {w \in proposed[b] : Chosen(b, w)}} : b \in Ballots}

-----------------------------------------------------------------------------
(* Parts of the actions. *)

\* Rule 1: whole, every older uncommitted batch that it overlaps is dropped.
Drop(log, value) ==
    IF Is("overlap_kept") THEN {x \in log : ~(x.value.begin = value.begin /\ x.value.end = value.end)}
    ELSE {x \in log : ~Overlap(x.value, value)}
        \cup (IF Is("overlap_cut")
              THEN {Batch(x.ballot, Value(x.value.origin, value.end, x.value.end)) :
                        x \in {y \in log : Overlap(y.value, value) /\ y.value.end > value.end}}
              ELSE {})
Store(state, batch) ==
    [state EXCEPT !.log = Drop(@, batch.value) \cup {batch}, !.unknown = @ \ SlotsOf(batch.value)]

\* What waits for the disk, in the whole cluster, when acceptor a's memory becomes `state`. Nobody sees a change before it
\* is durable, and a crash that loses it shows no more than a change that never came: few pending changes stand for many.
Pending(state, stored) ==
    LET new == state.log \ stored.log
        promised == state.promised = stored.promised \/ \E x \in new : x.ballot = state.promised
    IN Cardinality(new) + (IF promised THEN 0 ELSE 1)
Fits(a, state) ==
    /\ Pending(state, disk[a]) <= PendingMax
    /\ \A c \in Acceptors \ {a} : Pending(memory[c], disk[c]) + Pending(state, disk[a]) <= PendingMax

\* A candidate or leader stops when its own acceptor promises more.
Superseded(a, promised) ==
    [b \in Ballots |-> IF owner[b] = a /\ b < promised /\ phase[b] # "free" THEN "over" ELSE phase[b]]

\* Nobody reads the promises of a candidate that is not asking any more.
Trim(table, phases) ==
    [b \in Ballots |-> IF phases[b] = "asking" \/ Is("stale_promise") \/ Is("ballot_reused") THEN table[b] ELSE {}]

Above(log, commit) == {x \in log : x.value.begin > commit}
PromiseOf(a, state) ==
    [acceptor |-> a, commit |-> state.commit, unknown |-> {s \in state.unknown : s > state.commit},
     log |-> IF Is("promise_mixes_ballots")
             THEN {Batch(state.promised, x.value) : x \in Above(state.log, state.commit)}
             ELSE Above(state.log, state.commit)]

\* From the highest ballot down, whole, whatever overlaps nothing that is taken already.
RECURSIVE Take(_, _)
Take(reported, b) ==
    IF b = 0 THEN {} ELSE
    LET this == IF Is("phase1_takes_lowest") THEN BallotMax + 1 - b ELSE b
        rest == {x \in reported : x.ballot # this}
        taken == {x.value : x \in {y \in reported : y.ballot = this}}
    IN taken \cup Take(IF Is("overlap_taken") THEN rest
                       ELSE {x \in rest : \A v \in taken : ~Overlap(x.value, v)}, b - 1)
Taken(reported, commit) ==
    IF Is("phase1_ignores_reported") THEN {}
    ELSE IF Is("noop_over_reported") THEN Take({x \in reported : x.value.begin = commit + 1}, BallotMax)
    ELSE Take(reported, BallotMax)

\* Gaps below a taken value are filled with one no-op each; behind the last one come new commands.
Plans(b, taken, commit) ==
    LET covered == UNION {SlotsOf(v) : v \in taken}
        tail == IF taken = {} THEN commit + 1 ELSE CHOOSE e \in {v.end : v \in taken} : \A v \in taken : v.end <= e
        gaps == {Value(b, i, j) : <<i, j>> \in {<<i, j>> \in (Slots \X Slots) :
                    /\ commit < i /\ i < j /\ j < tail
                    /\ i..(j - 1) \cap covered = {} /\ j \in covered
                    /\ (i = commit + 1 \/ i - 1 \in covered)}}
        Fresh(range) == CHOOSE v \in {Value(b, i, j) : i \in Slots, j \in 2..(SlotMax + 1)} : SlotsOf(v) = range
    IN {taken \cup gaps \cup {Fresh(range) : range \in cut} : cut \in Cuts[tail]}

\* This replica knows now that `batch`, which continues its committed prefix, is committed. A leader that proposed
\* something else for these slots has lost them, and stops before it tells its commit index again.
Commit(a, state, batch) ==
    LET Lost(b) == /\ owner[b] = a /\ phase[b] = "leading"
                   /\ batch.value \notin proposed[b] /\ ~Is("deposed_leader_tells")
    IN /\ batch.value.begin = state.commit + 1
       /\ memory' = [memory EXCEPT ![a] = [state EXCEPT !.commit = batch.value.end - 1]]
       /\ phase' = [b \in Ballots |-> IF Lost(b) THEN "over" ELSE phase[b]]
       /\ UNCHANGED <<owner, disk, proposed, promises, accepted, corrupted>>

-----------------------------------------------------------------------------
(* The candidate. *)

\* A new ballot, above what is promised here. Prepare is held until this promise is durable (Persist).
Campaign(a, b) ==
    LET state == [memory[a] EXCEPT !.promised = b]
    IN /\ owner[b] = a /\ phase[b] = "free"
       /\ b > memory[a].promised
       /\ Fits(a, state)
       /\ memory' = [memory EXCEPT ![a] = state]
       /\ phase' = [Superseded(a, b) EXCEPT ![b] = IF Is("prepare_before_durable") THEN "asking" ELSE "created"]
       /\ promises' = Trim(promises, phase')
       /\ UNCHANGED <<owner, disk, proposed, accepted, corrupted>>

\* Phase 1b, for all slots at once. The Promise is held until it is durable.
HandlePrepare(a, b) ==
    LET state == [memory[a] EXCEPT !.promised = b]
    IN /\ phase[b] = "asking" /\ owner[b] # a
       /\ b > memory[a].promised
       /\ Fits(a, state)
       /\ memory' = [memory EXCEPT ![a] = state]
       /\ phase' = Superseded(a, b)
       /\ promises' = IF Is("promise_before_durable")
              THEN [Trim(promises, phase') EXCEPT ![b] = @ \cup {PromiseOf(a, state)}]
              ELSE Trim(promises, phase')
       /\ UNCHANGED <<owner, disk, proposed, accepted, corrupted>>

\* With a Phase 1 quorum of Promises, for every slot, and with everything that one of them knows to be committed: the
\* values to propose in this ballot. What a leader has not proposed yet is a message that has not arrived yet.
Lead(b) ==
    LET a == owner[b]
        state == memory[a]
        here == IF Is("stale_promise") THEN UNION {promises[c] : c \in Ballots} ELSE promises[b]
    IN /\ phase[b] = "asking"
       /\ state.commit < SlotMax
       /\ \E got \in SUBSET here :
              LET own == PromiseOf(a, state)
                  all == got \cup {own}
                  Counts(set) ==
                      IF Is("promise_counted_twice") THEN Cardinality(set) + 1 > 1 ELSE IsPhase1Quorum(set)
                  Knows(s) == {p.acceptor : p \in {q \in all : s \notin q.unknown \/ Is("unknown_is_empty")}}
                  reported == UNION {Above(p.log, state.commit) : p \in all}
              IN /\ \A p, q \in got : p = q \/ p.acceptor # q.acceptor
                 /\ \A p \in got : p.acceptor # a
                 /\ Counts({p.acceptor : p \in all})
                 /\ \A s \in (state.commit + 1)..SlotMax : Counts(Knows(s))
                 /\ \A p \in got : p.commit <= state.commit \/ Is("committed_not_fetched")
                 /\ \E plan \in Plans(b, Taken(reported, state.commit), state.commit) :
                        proposed' = [proposed EXCEPT ![b] = @ \cup plan]
                 /\ accepted' = IF Is("merged_before_durable")
                        THEN [accepted EXCEPT ![b] = @ \cup {Vote(a, v) : v \in Taken(reported, state.commit)}]
                        ELSE accepted
       /\ phase' = [phase EXCEPT ![b] = "leading"]
       /\ promises' = Trim(promises, phase')
       /\ UNCHANGED <<owner, memory, disk, corrupted>>

-----------------------------------------------------------------------------
(* The acceptor and the learner. *)

\* Phase 2b, also of the leader's own acceptor. Accepted is held until the batch is durable.
HandleAccept(a, b, value) ==
    LET batch == Batch(b, value)
        raised == IF Is("accept_keeps_promise") THEN memory[a].promised ELSE b
        state == Store([memory[a] EXCEPT !.promised = raised], batch)
    IN /\ b >= memory[a].promised \/ Is("accept_below_promise")
       /\ value.begin > memory[a].commit \/ Is("accept_below_commit")
       /\ batch \notin memory[a].log
       /\ Fits(a, state)
       /\ memory' = [memory EXCEPT ![a] = state]
       /\ phase' = Superseded(a, b)
       /\ promises' = Trim(promises, phase')
       /\ accepted' = IF Is("accepted_before_durable")
              THEN [accepted EXCEPT ![b] = @ \cup {Vote(a, value)}] ELSE accepted
       /\ UNCHANGED <<owner, disk, proposed, corrupted>>

\* Only a mutant does more with a second copy than wait for the first one's Persist.
HandleDuplicateAccept(a, b, value) ==
    /\ Is("duplicate_acked_early")
    /\ Batch(b, value) \in memory[a].log \ disk[a].log
    /\ accepted' = [accepted EXCEPT ![b] = @ \cup {Vote(a, value)}]
    /\ UNCHANGED <<owner, memory, disk, phase, proposed, promises, corrupted>>

\* A Phase 2 quorum has durably accepted in this ballot; the leader's own vote counts like any other, once durable.
LeaderCommit(b, value) ==
    LET a == owner[b]
        own == IF Is("own_vote_early") THEN {a} ELSE {}
        voters == own \cup IF Is("votes_across_ballots")
            THEN UNION {Voters(c, value) : c \in Ballots} ELSE Voters(b, value)
    IN /\ phase[b] = "leading"
       /\ Batch(b, value) \in memory[a].log
       /\ IsPhase2Quorum(voters) \/ (Is("vote_counted_twice") /\ voters # {})
       /\ Commit(a, memory[a], Batch(b, value))

\* What a follower knows to be committed shows in what it promises and in what it proposes, in nothing else: a lazy one
\* learns it while there is a candidate whom it has not promised yet, or is one.
MayLearn(a) == ~LazyCommit \/ \E b \in Ballots : phase[b] = "asking" /\ (b > memory[a].promised \/ owner[b] = a)

\* The leader of ballot b tells its commit index: only what was accepted in b is committed, the rest is fetched. A late
\* Commit does what Learn does, as long as ToldIsCommitted holds.
FollowerCommit(a, b, batch) ==
    /\ phase[b] = "leading"
    /\ batch \in memory[a].log
    /\ batch.ballot = b \/ Is("commit_other_ballot")
    /\ batch.value.end <= memory[owner[b]].commit + 1
    /\ Commit(a, memory[a], batch)

\* A fetched batch. The same value stands here already: the commit is all that is new.
Learn(a, batch) ==
    LET stands == {x \in memory[a].log : x.value = batch.value}
        state == IF Is("learn_keeps_overlap") THEN [memory[a] EXCEPT !.log = @ \cup {batch}] ELSE Store(memory[a], batch)
    IN IF stands # {} THEN \E x \in stands : Commit(a, memory[a], x)
       ELSE Fits(a, state) /\ Commit(a, state, batch)

\* Nobody can read back a slot that is committed: the highest ballot in a Phase 1 quorum holds the chosen value.
Survey(a) ==
    LET slot == memory[a].commit + 1
        Sighted == {c \in Acceptors : slot \notin memory[c].unknown \/ Is("survey_counts_unknown")}
        At(set) == UNION {{x \in memory[c].log : slot \in SlotsOf(x.value)} : c \in set}
    IN /\ \E x \in Known : x.value.begin = slot
       /\ \E set \in SUBSET Sighted :
              /\ IsPhase1Quorum(set) \/ (Is("survey_of_minority") /\ set # {})
              /\ \E x \in At(set) : /\ Is("survey_takes_any") \/ \A y \in At(set) : y.ballot <= x.ballot
                                    /\ Learn(a, x)

-----------------------------------------------------------------------------
(* The disk. *)

\* One group commit. Everything that was held for it leaves: Prepare, Promise, Accepted.
Persist(a) ==
    LET state == [memory[a] EXCEPT !.commit = 0]
        b == state.promised
        now == IF b = 0 THEN "free" ELSE phase[b]
    IN /\ disk[a] # state
       /\ disk' = [disk EXCEPT ![a] = state]
       /\ accepted' = [c \in Ballots |-> IF c < b \/ (c > b /\ ~Is("accept_keeps_promise")) THEN accepted[c] ELSE
              accepted[c] \cup {Vote(a, x.value) : x \in {y \in state.log : y.ballot = c}}]
       /\ phase' = IF now = "created" /\ owner[b] = a THEN [phase EXCEPT ![b] = "asking"] ELSE phase
       /\ promises' = IF now = "asking" /\ owner[b] # a
              THEN [promises EXCEPT ![b] = @ \cup {PromiseOf(a, memory[a])}] ELSE promises
       /\ UNCHANGED <<owner, memory, proposed, corrupted>>

\* A batch that was learned may name a ballot that was never promised here; a restart promises it.
Restarted(state) ==
    LET known == {x.ballot : x \in state.log} \cup {state.promised}
        promised == CHOOSE b \in known : \A c \in known : c <= b
    IN [state EXCEPT !.promised = IF Is("promise_forgotten") THEN 0 ELSE promised,
                     !.log = IF Is("acceptance_forgotten") THEN {} ELSE @]

\* A ballot that no Prepare left for is made again; every other one is over: it names one boot of one proposer.
Lost(a) ==
    [b \in Ballots |->
        IF owner[b] # a \/ phase[b] = "free" THEN phase[b]
        ELSE IF phase[b] = "created" \/ (Is("prepare_before_durable") /\ disk[a].promised < b) THEN "free"
        ELSE IF Is("ballot_reused") THEN "asking"
        ELSE "over"]

Crash(a) ==
    /\ \/ memory[a] # Restarted(disk[a])
       \/ phase # Lost(a)
    /\ memory' = [memory EXCEPT ![a] = Restarted(disk[a])]
    /\ phase' = Lost(a)
    /\ promises' = Trim(promises, phase')
    /\ UNCHANGED <<owner, disk, proposed, accepted, corrupted>>

\* A restart finds records unreadable. A bad block hides its own range; a bad head hides every slot that no later record
\* covers.
CorruptCrash(a) ==
    LET state == Restarted(disk[a])
        Found(lost, hidden) == [state EXCEPT !.log = @ \ lost, !.unknown = (@ \cup hidden)]
    IN /\ Corruption /\ ~corrupted
       /\ \E lost \in SUBSET state.log \ {{}} :
              \/ /\ Cardinality(lost) = 1
                 /\ memory' = [memory EXCEPT ![a] = Found(lost, UNION {SlotsOf(x.value) : x \in lost})]
              \/ memory' = [memory EXCEPT ![a] =
                     Found(lost, Slots \ UNION {SlotsOf(x.value) : x \in state.log \ lost})]
       /\ disk' = [disk EXCEPT ![a] = memory'[a]]
       /\ phase' = Lost(a)
       /\ promises' = Trim(promises, phase')
       /\ corrupted' = TRUE
       /\ UNCHANGED <<owner, proposed, accepted>>

-----------------------------------------------------------------------------
Init ==
    /\ memory = [a \in Acceptors |-> [promised |-> 0, log |-> {}, commit |-> 0, unknown |-> {}]]
    /\ disk = memory
    /\ owner \in {f \in [Ballots -> Acceptors] : \A b \in Ballots : f[b] <= 1 + Cardinality({f[c] : c \in 1..(b - 1)})}
    /\ phase = [b \in Ballots |-> "free"]
    /\ proposed = [b \in Ballots |-> {}]
    /\ promises = [b \in Ballots |-> {}]
    /\ accepted = [b \in Ballots |-> {}]
    /\ corrupted = FALSE

Next ==
    \/ \E a \in Acceptors :
        \/ Persist(a)
        \/ Crash(a)
        \/ CorruptCrash(a)
        \/ MayLearn(a) /\ (Survey(a) \/ \E batch \in Known : Learn(a, batch))
        \/ \E b \in Ballots :
            \/ Campaign(a, b)
            \/ HandlePrepare(a, b)
            \/ \E value \in proposed[b] : HandleAccept(a, b, value) \/ HandleDuplicateAccept(a, b, value)
            \/ MayLearn(a) /\ \E batch \in memory[a].log : FollowerCommit(a, b, batch)
    \/ \E b \in Ballots : Lead(b) \/ \E value \in proposed[b] : LeaderCommit(b, value)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* What must hold in every state. *)

\* Nobody commits, and no ballot chooses, two values for one slot.
Agreement == \A x, y \in Known : Overlap(x.value, y.value) => x.value = y.value

\* Whatever a replica knows to be committed was chosen. As what is chosen stays so, restarts change nothing of Agreement.
CommittedIsChosen == \A a \in Acceptors : \A x \in Committed(a) : \E b \in Ballots : Chosen(b, x.value)

\* The commit index that a leader tells speaks of what it proposed.
ToldIsCommitted ==
    \A b \in Ballots : phase[b] = "leading" =>
        \A v \in proposed[b] : v.begin <= memory[owner[b]].commit =>
            \E x \in Committed(owner[b]) : x.value = v

\* What is chosen stays chosen: every higher ballot proposes this very batch, or nothing for these slots (P2b).
ChosenIsProposed ==
    \A b \in Ballots : \A v \in proposed[b] : Chosen(b, v) =>
        \A c \in (b + 1)..BallotMax : \A w \in proposed[c] : Overlap(v, w) => v = w

\* One value per ballot and slot; values travel whole and unchanged from the ballot that made them, and nothing else is
\* stored.
OneValuePerBallot == \A b \in Ballots : \A v, w \in proposed[b] : v = w \/ ~Overlap(v, w)
ValuesAreWhole ==
    /\ \A b \in Ballots : \A v \in proposed[b] : v \in proposed[v.origin]
    /\ \A a \in Acceptors : \A x \in memory[a].log : x.value \in proposed[x.ballot]

\* The log of a replica never overlaps itself, and its committed batches tile the slots up to its commit index.
LogsTile ==
    \A a \in Acceptors :
        /\ \A log \in {memory[a].log, disk[a].log} : \A x, y \in log : x = y \/ ~Overlap(x.value, y.value)
        /\ 1..memory[a].commit = UNION {SlotsOf(x.value) : x \in Committed(a)}

\* What was sent rests on the disk of its sender: a restart must not forget it. An accepted batch makes room only for one
\* of a higher ballot, or for one that is committed.
SentIsDurable ==
    \A b \in Ballots :
        /\ phase[b] = "asking" => disk[owner[b]].promised >= b
        /\ \A p \in promises[b] : disk[p.acceptor].promised >= b
        /\ \A m \in accepted[b] :
            /\ disk[m.acceptor].promised >= b
            /\ \/ SlotsOf(m.value) \cap disk[m.acceptor].unknown # {}
               \/ \E x \in disk[m.acceptor].log : Overlap(x.value, m.value) /\ (x.ballot >= b \/ Chosen(x.ballot, x.value))

\* The promise on the disk never falls; the one in memory falls back to the disk's at most.
PromiseNeverFalls ==
    [][\A a \in Acceptors :
        /\ disk'[a].promised >= disk[a].promised
        /\ memory'[a].promised >= memory[a].promised \/ memory'[a].promised >= disk[a].promised]_vars
=============================================================================
